"""A run that is cut and resumed, on whatever number of ranks, goes on as the undisturbed one."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tests.training.resuming import STEPS, Scores, model, train

from mofi_lightning.encoders import checkpoint
from mofi_lightning.training import Optimization, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.checkpoints.mismatch import explain_mismatch
from mofi_lightning.types import InputError


def newest(root: Path) -> Path:
    found = latest_checkpoint(root)
    assert found is not None and found.is_dir()
    return found


def mean(results: list[dict[str, Any]]) -> list[float]:
    return torch.tensor([r["losses"] for r in results], dtype=torch.float64).mean(0).tolist()


def assert_equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=within, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def undisturbed(pool, tmp_path_factory) -> dict[str, Any]:
    (one,) = pool(1, train, tmp_path_factory.mktemp("undisturbed"))
    parts = {name.partition(" ")[0].partition(".")[0] for name in one["state"]}
    assert parts == {"model", "objective", "average", "optimizer"}
    return one


@pytest.mark.parametrize(
    ("writers", "replicate", "readers", "copies"),
    [
        (2, 1, 1, 1),
        (1, 1, 2, 1),
        pytest.param(2, 1, 3, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, 2, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, 2, 1, marks=pytest.mark.slow),
        pytest.param(2, 1, 4, 2, marks=pytest.mark.slow),
        pytest.param(1, 1, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_with_the_same_losses_on_another_number_of_ranks(
    pool, tmp_path, undisturbed, writers, replicate, readers, copies
):
    first = pool(writers, train, tmp_path, replicate, None, 3)
    rest = pool(readers, train, tmp_path, copies, newest(tmp_path))
    assert [r["step"] for r in (*first, *rest)] == [3] * writers + [STEPS] * readers
    assert mean(first) + mean(rest) == pytest.approx(undisturbed["losses"], abs=1e-9)
    for rank in rest:
        assert_equal_states(undisturbed["state"], rank["state"], 1e-9)


def optimized(optimizer: Any, root: Path, stop: int = 0, resume: Path | None = None) -> dict[str, Any]:
    return train(root, 1, resume, stop, model(optimizer))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.SGD, momentum=0.9),
        torch.optim.SGD,  # keeps no state
        torch.optim.NAdam,  # keeps numbers beside the moments
    ],
)
def test_the_state_of_other_optimizers_is_restored_to_the_bit(pool, tmp_path, optimizer, ranks):
    whole = pool(ranks, optimized, optimizer, tmp_path / "whole")
    pool(ranks, optimized, optimizer, tmp_path, 3)
    rest = pool(ranks, optimized, optimizer, tmp_path, 0, newest(tmp_path))
    for one, other in zip(whole, rest, strict=True):
        assert one["losses"][3:] == other["losses"]
        assert_equal_states(one["state"], other["state"], 0)


def test_frozen_parameters_have_no_state_and_need_none(tmp_path):
    frozen = functools.partial(model, freeze="model.image.encoder.*")
    whole = train(tmp_path / "whole", module=frozen())
    train(tmp_path, stop=3, module=frozen())
    rest = train(tmp_path, resume=newest(tmp_path), module=frozen())
    assert whole["losses"][3:] == rest["losses"]
    assert_equal_states(whole["state"], rest["state"], 0)


def test_other_groups_of_the_optimizer_keep_each_parameters_own_state(tmp_path):
    train(tmp_path, stop=3)
    decayed = Optimization(lr=1e-9, warmup_steps=0, weight_decay=0, layer_decay=0.5)
    resumed = train(tmp_path, resume=newest(tmp_path), module=model(optimization=decayed))
    saved = {
        name.removeprefix("optimizer_0.state."): value
        for name, value in tensors(newest(tmp_path)).items()
        if name.endswith(".step")
    }
    assert saved and all(float(value) == 3 for value in saved.values())
    for name, value in resumed["state"].items():
        if name.endswith(" step"):
            assert float(value) == STEPS, name


def tensors(path: Path) -> dict[str, torch.Tensor]:
    from mofi_lightning.encoders.checkpoint_format import load_tensors, read_index

    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in read_index(path).state_dict_metadata.items()
    }
    load_tensors(path, wanted)
    return wanted


@pytest.mark.parametrize("every", [2, 1000])  # the best one is saved at its step anyway, or for its own sake
def test_the_best_checkpoint_is_kept_and_resumes_to_the_bit(tmp_path, every):
    def callbacks() -> list[Any]:
        return [Scores([0.1, 0.5, 0.3]), StepCheckpoint(every, monitor="val/score", mode="max")]

    validate = {"val_check_interval": 2}
    whole = train(tmp_path, callbacks=callbacks(), **validate)
    best = tmp_path / "checkpoints" / "best" / "step=00000004.ckpt"
    assert [path.name for path in best.parent.glob("step*")] == [best.name]
    assert newest(tmp_path).name == f"step={STEPS:08d}.ckpt"

    rest = train(tmp_path / "again", resume=best, callbacks=callbacks(), **validate)
    assert rest["losses"] == whole["losses"][4:]
    assert_equal_states(whole["state"], rest["state"], 0)


def test_a_resumed_run_knows_how_good_the_best_one_was(tmp_path):
    scores = [0.9, 0.5, 0.95]
    validate = {"val_check_interval": 2, "module": None}
    callbacks = [Scores(scores), StepCheckpoint(4, monitor="val/score", mode="max")]
    train(tmp_path, stop=4, callbacks=callbacks, **validate)
    best = tmp_path / "checkpoints" / "best"
    assert [path.name for path in best.glob("step*")] == ["step=00000002.ckpt"]
    for score, name in ((0.8, "step=00000002.ckpt"), (0.95, "step=00000006.ckpt")):
        scores[2] = score
        shutil.rmtree(tmp_path / "checkpoints/step=00000006.ckpt", ignore_errors=True)
        callbacks = [Scores(scores), StepCheckpoint(1000, keep_last=3, monitor="val/score", mode="max")]
        train(tmp_path, resume=tmp_path / "checkpoints/step=00000004.ckpt", callbacks=callbacks, **validate)
        assert [path.name for path in best.glob("step*")] == [name]


def test_a_run_does_not_branch_off_beside_later_checkpoints_of_its_folder(tmp_path):
    train(tmp_path, callbacks=[StepCheckpoint(2, keep_last=3)])
    old = tmp_path / "checkpoints/step=00000002.ckpt"
    with pytest.raises(
        InputError, match=r"step=00000004.ckpt, .*step=00000006.ckpt are of a later step than 2"
    ):
        train(tmp_path, resume=old, callbacks=[StepCheckpoint(2)])
    train(tmp_path / "other", resume=old, callbacks=[StepCheckpoint(2)])
    assert newest(tmp_path / "other").name == "step=00000006.ckpt"


def test_a_checkpoint_of_weights_only_is_loaded_and_not_resumed(tmp_path):
    class SaveWeights(Callback):
        def on_train_end(self, trainer: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "mine.ckpt", weights_only=True)

    train(tmp_path, callbacks=[SaveWeights()])
    with pytest.raises(InputError, match=r"mine.ckpt' was saved with weights_only=True"):
        train(tmp_path / "again", resume=tmp_path / "mine.ckpt")
    checkpoint.check_resumable(tmp_path / "mine.ckpt", training=False)
    assert len(checkpoint.read(tmp_path / "mine.ckpt").weights) > 10


def test_a_monitored_value_needs_to_be_told_which_way_is_better():
    for options in ({"monitor": "val/loss"}, {"mode": "min"}):
        with pytest.raises(InputError, match="give both, mode min for a loss"):
            StepCheckpoint(**options)


def test_another_optimizer_or_average_than_the_checkpoints_is_refused_by_name(tmp_path):
    train(tmp_path, stop=3)
    saved = newest(tmp_path)
    other = model(functools.partial(torch.optim.SGD, momentum=0.9))
    with pytest.raises(
        InputError, match=r"written with optimizer AdamW, this run has SGD; .*model.init_from"
    ):
        train(tmp_path / "a", resume=saved, module=other)
    plain = model(ema_decay=None)
    with (
        pytest.raises(InputError, match=r"it was written with model.ema_decay, which this run leaves out"),
        explain_mismatch(saved, plain),
    ):
        train(tmp_path / "b", resume=saved, module=plain)


def test_coverage_goes_on_after_a_resume(tmp_path):
    def covered(root: Path, resume: Path | None, stop: int = 0) -> float:
        trained = model()
        train(root, resume=resume, stop=stop, module=trained)
        objective = trained.objective.objectives["entity"]
        found = int(objective._updated) / objective.num_classes
        assert found == pytest.approx((objective.second_moment > 0).any(1).double().mean().item())
        return found

    first = covered(tmp_path, None, stop=3)
    assert 0 < first < covered(tmp_path, newest(tmp_path)) <= 1


def test_a_monitored_value_that_nothing_logs_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'val/map', which validation does not log; it logs val/"):
        train(tmp_path, callbacks=[StepCheckpoint(monitor="val/map", mode="max")], val_check_interval=2)


def test_one_file_is_not_resumed_but_loaded(tmp_path):
    train(tmp_path, stop=3)
    folder = newest(tmp_path)
    state = {
        key.removeprefix("state_dict."): value
        for key, value in tensors(folder).items()
        if key.startswith("state_dict.")
    }
    torch.save({"state_dict": state, **checkpoint.read_meta(folder)}, tmp_path / "one.ckpt")
    with pytest.raises(InputError, match=r"one.ckpt' is one file.*model.init_from"):
        train(tmp_path / "again", resume=tmp_path / "one.ckpt")
    one, sharded = checkpoint.read(tmp_path / "one.ckpt"), checkpoint.read(folder)
    assert one.weights.keys() == sharded.weights.keys()
    assert all(torch.equal(one.weights[name], value) for name, value in sharded.weights.items())


def test_a_model_with_an_average_is_read_as_its_average(tmp_path):
    state = train(tmp_path, stop=3)["state"]
    read = checkpoint.read(newest(tmp_path)).weights
    averages = {
        name.removeprefix("average.model/").replace("/", "."): v
        for name, v in state.items()
        if name.startswith("average.")
    }
    assert len(averages) > 10 and averages.keys() <= read.keys()
    for name, value in read.items():
        assert torch.equal(value, averages.get(name, state[f"model.{name}"])), name
        if name in averages and name.startswith("image"):
            assert not torch.equal(value, state[f"model.{name}"]), name
