"""Steps whose loss or gradient is not finite change nothing but a count, and many of them end the run."""

from __future__ import annotations

import copy
import csv
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from tests.test_cli import complaint
from tests.training.runs import ENCODER, trainer, whole
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import rank
from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.optimization.skipping import BatchStatistics, SkippedSteps
from mofi_lightning.types import InputError

STEPS = 7
DRAWS = "objective.objectives.entity.draws"  # counts the steps that have sampled, skipped or not


class FaultyMOFI(MOFI):
    """MOFI whose loss is `value` at some forwards in training, counted from 1, on one rank."""

    faults: Sequence[int] = ()
    value = math.nan
    on_rank = 0
    _forwards = 0

    def forward(self, embeddings, batch):
        output = super().forward(embeddings, batch)
        if not self.training:
            return output
        self._forwards += 1
        if self._forwards not in self.faults or rank() != self.on_rank:
            return output
        return output._replace(loss=output.loss * self.value)


def make(faults: Sequence[int], value: float, on_rank: int, spec: Any) -> FaultyMOFI:
    objective = FaultyMOFI(spec, entity=functools.partial(EntitySoftmax, num_sampled=10))
    objective.faults, objective.value, objective.on_rank = faults, value, on_rank
    return objective


def module(faults: Sequence[int], value: float = math.nan, on_rank: int = 0, most: int = 10):
    return PretrainingModule(
        ENCODER,
        functools.partial(make, faults, value, on_rank),
        Optimization(lr=1e-2, warmup_steps=2),
        ema_decay=0.5,
        max_skipped_steps=most,
    )


def data() -> SyntheticDataModule:
    return SyntheticDataModule(rows=16, num_entities=20)


def tensors(run: Any, model: PretrainingModule) -> dict[str, Tensor]:
    """Everything that training changes, as this rank holds it."""
    (optimizer,) = run.optimizers
    names = {p: name for name, p in model.named_parameters()}
    state = {
        f"{names[p]} {key}": value for p, values in optimizer.state.items() for key, value in values.items()
    }
    local = dict(model.state_dict()) | state
    return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in local.items() if name != DRAWS}


class Undo(Callback):
    """Puts everything back to where it was before some steps, so that these have never been."""

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps
        self._before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step + 1 in self.steps:
            self._before = copy.deepcopy(tensors(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step not in self.steps:
            return
        after = tensors(trainer, pl_module)
        if after.keys() != self._before.keys():  # the optimizer had no state yet
            trainer.optimizers[0].state.clear()
        with torch.no_grad():
            for name, before in self._before.items():
                after[name].copy_(before)


def train(root: str, faults: Sequence[int], undone: Sequence[int], value: float, on_rank: int) -> Any:
    """What is left after training with faults, or with whole steps undone."""
    seed_everything(3, verbose=False)
    model = module(faults, value, on_rank)
    logger = CSVLogger(root, name="", version="")
    run = trainer(Path(root), STEPS, callbacks=[Undo(undone)], logger=logger, log_every_n_steps=1)
    run.fit(model, datamodule=data())
    return {name: whole(value) for name, value in tensors(run, model).items()}


def logged_counts(root: Path) -> list[float]:
    with (root / "metrics.csv").open() as file:
        return [float(row["train/skipped_steps"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("ranks", "value", "faults"), [(1, math.nan, (1, 4, 5)), (1, math.inf, (3,)), (2, math.nan, (1, 4, 5))]
)
def test_a_step_that_is_not_finite_is_as_if_it_had_never_been(pool, tmp_path, ranks, value, faults):
    skipped = pool(ranks, train, str(tmp_path / "a"), faults, (), value, ranks - 1)
    undone = pool(ranks, train, str(tmp_path / "b"), (), faults, value, 0)
    untouched = pool(ranks, train, str(tmp_path / "c"), (), (), value, 0)
    assert logged_counts(tmp_path / "a") == [sum(f <= step for f in faults) for step in range(1, STEPS + 1)]
    assert logged_counts(tmp_path / "b") == [0] * STEPS
    for found, expected, other in zip(skipped, undone, untouched, strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
        kinds = ("weight", "table", "second_moment", "exp_avg", "average.")
        changed = [name for name in expected if not torch.equal(expected[name], other[name])]
        assert all(any(kind in name for name in changed) for kind in kinds)


def said_after(root: str, on_rank: int) -> str:
    """How a run with two faults, then three in a row, ends, where two in a row may be skipped."""
    seed_everything(3, verbose=False)
    model = module((1, 2, 4, 5, 6), on_rank=on_rank, most=2)
    run = trainer(Path(root), 20, callbacks=[StepCheckpoint(3)], enable_checkpointing=True)
    with pytest.raises(InputError) as caught:
        run.fit(model, datamodule=data())
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_many_in_a_row_end_the_run_on_all_ranks_and_its_checkpoint_is_good(pool, tmp_path, ranks):
    for said in pool(ranks, said_after, str(tmp_path), ranks - 1):
        assert said.startswith(
            "loss or gradient was not finite at step 6 and in all of the 3 steps up to it "
            "(model.max_skipped_steps is 2); the last good step was 3, and the weights are as it left them"
        )
        assert "\n" not in said
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step=00000006.ckpt"  # not that of the interval
    model = module((), most=2)
    run = trainer(tmp_path / "resumed", 8)
    run.fit(model, datamodule=data(), ckpt_path=str(newest), weights_only=True)
    assert run.global_step == 8 and model.skipped.count == 5
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_resumed_run_counts_on():
    whole_run, first = SkippedSteps(3), SkippedSteps(3)
    for step, finite in enumerate([True, False, True, False, False], start=1):
        whole_run.record(step, finite)
        first.record(step, finite)
    resumed = SkippedSteps(3)
    resumed.load_state_dict(first.state_dict())
    said = []
    for counts in (whole_run, resumed):
        counts.record(6, False)
        assert counts.count == 4
        assert not counts.too_many
        counts.record(7, False)
        assert counts.too_many
        with pytest.raises(
            InputError, match=r"at step 7 and in all of the 4 steps .* last good step was 3"
        ) as caught:
            counts.end_the_run()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_with_none_allowed_the_first_ends_the_run():
    none = SkippedSteps(0)
    none.record(1, False)
    with pytest.raises(InputError, match="no step before was good"):
        none.end_the_run()
    with pytest.raises(InputError, match="max_skipped_steps is -1"):
        SkippedSteps(-1)


def test_running_statistics_forget_a_batch_that_is_skipped():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval())
    statistics = BatchStatistics(model)
    model(torch.randn(2, 3, 4, 4))
    statistics.keep()
    before = copy.deepcopy(model.state_dict())
    model(torch.full((2, 3, 4, 4), math.nan))
    assert model[1].running_mean.isnan().all() and model[1].num_batches_tracked == 2
    statistics.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_that_diverges_ends_with_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    words = ["--config", "configs/fit/synthetic.yaml", "--trainer.accelerator", "cpu"]
    words += ["--trainer.max_steps", "40", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--model.optimization.lr", "1e30", "--model.max_skipped_steps", "1"]
    assert "loss or gradient was not finite at step" in complaint(capsys, "fit", *words)
