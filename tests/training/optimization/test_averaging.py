"""The average of the weights: its values, its shards, and its place in validation and checkpoints."""

import copy
import functools
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from tests.training.runs import ENCODER, VIT, trainer, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mofi_lightning
from mofi_lightning.distributed import world_size
from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.optimization.averaging import WeightAverage
from mofi_lightning.types import InputError

STEPS = 30


def toy() -> nn.Module:
    """Rows that no number of ranks divides; some ranks hold none of the scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double()
    model.register_parameter("scale", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    return model


def move(model: nn.Module, step: int) -> None:
    """Some change of every parameter, the same on any number of ranks."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(0.9).add_(math.sin(step * (number + 1)))


def averaged(decay: float, steps: int) -> tuple[dict[str, Tensor], bool, bool, list[int]]:
    """The averages after some steps, whether swapping works, and the local sizes."""
    model = toy()
    if world_size() > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (world_size(),)))
    average = WeightAverage(dict(model.named_parameters()), decay)
    for step in range(1, steps + 1):
        move(model, step)
        average.update(step)
    weights = {name: whole(p) for name, p in model.named_parameters()}
    averages = {name.replace("/", "."): whole(b) for name, b in average.named_buffers()}
    average.use()
    average.use()
    used = all(torch.equal(whole(p), averages[name]) for name, p in model.named_parameters())
    average.restore()
    average.restore()
    restored = all(torch.equal(whole(p), weights[name]) for name, p in model.named_parameters()) and all(
        torch.equal(whole(b), averages[name.replace("/", ".")]) for name, b in average.named_buffers()
    )
    local = [b.to_local().numel() if world_size() > 1 else b.numel() for b in average.buffers()]
    return averages, used, restored, local


def naive(decay: float, steps: int) -> dict[str, Tensor]:
    model = toy()
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(1, steps + 1):
        move(model, step)
        kept = min(decay, (1 + step) / (10 + step))
        averages = {n: kept * averages[n] + (1 - kept) * p.detach() for n, p in model.named_parameters()}
    return averages


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.6, 0.999])
def test_the_average_is_that_of_a_naive_loop_on_any_number_of_ranks(pool, ranks, decay):
    expected = naive(decay, STEPS)
    results = pool(ranks, averaged, decay, STEPS)
    for found, used, restored, _ in results:
        assert used and restored
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-13, atol=1e-14, msg=name)
    if ranks > 1:
        assert min(min(local) for *_, local in results) == 0  # a rank without its share of the scale


def test_a_constant_decay_is_torchs_average():
    model = toy()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.1))
    theirs.update_parameters(model)  # its first call copies
    ours = WeightAverage(dict(model.named_parameters()), 0.1)  # reached at the first step: 2 / 11 is more
    for step in range(1, STEPS):
        move(model, step)
        theirs.update_parameters(model)
        ours.update(step)
    for mine, other in zip(ours.buffers(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(InputError, match="ema_decay is"):
        WeightAverage({}, decay)


def test_a_state_dict_has_weights_and_averages_in_their_places_while_the_average_is_in_use():
    root = nn.Module()
    root.model = toy()
    parameters = dict(root.named_parameters())
    root.average = WeightAverage(parameters, 0.5)
    root.average.keep_state_in_order(root)
    move(root.model, 1)
    root.average.update(1)
    before = copy.deepcopy(root.state_dict())
    assert not torch.equal(before["model.scale"], before["average.model/scale"])
    root.average.use()
    during = root.state_dict()
    assert during.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in during.items())
    changed = {name: value + 1 for name, value in before.items()}
    root.load_state_dict(changed)
    assert all(torch.equal(value, changed[name]) for name, value in root.state_dict().items())
    root.average.restore()
    assert all(torch.equal(value, changed[name]) for name, value in root.state_dict().items())
    assert torch.equal(root.model.scale, changed["model.scale"])


def module(decay: float | None = 0.5) -> PretrainingModule:
    return PretrainingModule(ENCODER, optimization=Optimization(lr=1e-2, warmup_steps=1), ema_decay=decay)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(value) for name, value in model.state_dict().items()}


class Watch(Callback):
    """Saves and looks at the weights within every hook of a validation; fails at one of them if told to."""

    def __init__(self, root: Path, fail: bool = False) -> None:
        self.root = root
        self.fail = fail
        self.before: dict[str, Tensor] = {}
        self.used: dict[str, Tensor] = {}
        self.saved: list[Path] = []

    def _save(self, trainer, hook: str) -> None:
        path = self.root / f"{hook}.ckpt"
        trainer.save_checkpoint(path)
        self.saved.append(path)

    def on_validation_start(self, trainer, pl_module) -> None:
        self.before = state(pl_module)
        self._save(trainer, "start")

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.used = {name: whole(p) for name, p in pl_module.named_parameters()}
        self._save(trainer, "epoch_end")
        if self.fail:
            raise RuntimeError("validation failed")

    def on_validation_end(self, trainer, pl_module) -> None:
        self._save(trainer, "end")


def fit(model: PretrainingModule, root: Path, steps: int, *callbacks: Callback, **options) -> None:
    """Train, with a validation after the second step."""
    seed_everything(3, verbose=False)
    run = trainer(root, steps, callbacks=list(callbacks), **options)
    run.val_check_interval = 2
    run.fit(model, datamodule=SyntheticDataModule(rows=16, num_entities=20))


def test_validation_uses_the_average_and_every_checkpoint_of_it_is_in_order(tmp_path):
    watch = Watch(tmp_path)
    model = module()
    fit(model, tmp_path / "run", 2, watch)
    expected = {
        name: watch.before.get(f"average.{name.replace('.', '/')}", value)
        for name, value in watch.before.items()
    }
    assert any(not torch.equal(expected[name], watch.before[name]) for name in watch.used)
    for name, value in watch.used.items():
        assert torch.equal(value, expected[name]), name
    after = state(model)
    assert all(torch.equal(value, watch.before[name]) for name, value in after.items())
    assert len(watch.saved) == 3
    for path in watch.saved:
        fresh = module()
        run = trainer(tmp_path / "fresh", 2)
        run.fit(
            fresh,
            datamodule=SyntheticDataModule(rows=16, num_entities=20),
            ckpt_path=str(path),
            weights_only=True,
        )
        for name, value in state(fresh).items():
            assert torch.equal(value, watch.before[name]), (path, name)


def trained_with_validations(root: str, replicate: int = 1) -> dict[str, Tensor]:
    """The state after five steps in fp64, of which the second and the fourth are followed by a validation."""
    torch.set_default_dtype(torch.float64)
    try:
        seed_everything(3, verbose=False)
        model = PretrainingModule(
            VIT,
            functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=40)),
            Optimization(lr=1e-2, warmup_steps=1),
            ema_decay=0.9,
        )
        run = trainer(Path(root), 5, replicate, val_check_interval=2, limit_val_batches=1)
        run.fit(model, datamodule=SyntheticDataModule(rows=24, num_entities=101))
        assert "val/loss" in run.logged_metrics
        return {**state(model), "val/loss": run.logged_metrics["val/loss"]}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("ranks", "replicate"),
    [(2, 1), pytest.param(4, 2, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
    ids=["2 sharded", "2 x 2 hybrid"],
)
def test_every_layout_trains_on_with_the_weights_themselves_after_a_validation(
    pool, tmp_path, ranks, replicate
):
    (one,) = pool(1, trained_with_validations, str(tmp_path / "one"))
    for found in pool(ranks, trained_with_validations, str(tmp_path / "many"), replicate):
        assert found.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(
                found[name], expected, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_an_error_within_validation_leaves_the_weights_themselves(tmp_path):
    watch = Watch(tmp_path, fail=True)
    model = module()
    with pytest.raises(RuntimeError, match="validation failed"):
        fit(model, tmp_path / "run", 3, watch)
    assert not model.average.in_use
    assert all(torch.equal(whole(p), watch.before[name]) for name, p in model.named_parameters())


def test_the_exported_model_and_load_are_the_average_and_training_is_not_changed_by_it(tmp_path):
    model, without = module(), module(None)
    fit(model, tmp_path / "a", 3, StepCheckpoint(3), enable_checkpointing=True)
    fit(without, tmp_path / "b", 3)
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name
    checkpoint = latest_checkpoint(tmp_path / "a")
    assert checkpoint is not None
    averages = {name.replace("/", "."): buffer for name, buffer in model.average.named_buffers()}
    for path in (tmp_path / "a" / "model", checkpoint):
        loaded = mofi_lightning.load(path)
        for name, parameter in loaded.named_parameters():
            expected = averages[f"model.{name}"]
            assert torch.equal(parameter, expected), (path, name)
            assert not torch.equal(parameter, dict(model.model.named_parameters())[name])
