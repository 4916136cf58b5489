"""The optimizer and its groups."""

import contextlib
import functools
import io
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, seed_everything
from tests.test_cli import complaint
from tests.training.runs import ENCODER, trainer, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mofi_lightning import cli
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.command import build as build_command
from mofi_lightning.types import InputError


def toy() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    return model


def build(model: nn.Module, depths=None, **options) -> torch.optim.Optimizer:
    return Optimization(**options).build(dict(model.named_parameters()), depths or {})


def groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Rate and weight decay by name of the parameter."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_gains_biases_and_scales_are_not_decayed():
    model = toy()
    optimizer = build(model, weight_decay=0.2)
    assert {name: decay for name, (_, decay) in groups(optimizer, model).items()} == {
        "0.weight": 0.2,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "scale": 0,
    }
    assert len(optimizer.param_groups) == 2


def test_frozen_parameters_are_left_out_and_something_must_be_left():
    model = toy().requires_grad_(False)
    model[0].weight.requires_grad_(True)
    (group,) = build(model).param_groups
    assert group["params"] == [model[0].weight]
    with pytest.raises(InputError, match="every parameter is frozen"):
        build(model.requires_grad_(False))


def test_rates_are_the_product_of_layer_decay_and_patterns():
    model = toy()
    optimizer = build(
        model,
        {"0.weight": 2, "0.bias": 2, "1.weight": 1},
        lr=0.1,
        layer_decay=0.5,
        rates={"0.*": 0.4, "*.weight": 3.0},
    )
    assert {name: rate for name, (rate, _) in groups(optimizer, model).items()} == pytest.approx(
        {
            "0.weight": 0.1 * 0.25 * 1.2,
            "0.bias": 0.1 * 0.25 * 0.4,
            "1.weight": 0.15,
            "1.bias": 0.1,
            "scale": 0.1,
        }
    )


def test_rates_that_differ_by_rounding_are_one_group_and_groups_have_distinct_names():
    model = toy()
    optimizer = build(model, weight_decay=0, rates={"0.bias": 0.1 * 3, "1.bias": 0.3})
    names = [group["name"] for group in optimizer.param_groups]
    assert sorted(names) == ["0.3 undecayed", "1", "1 undecayed"]
    assert 0.1 * 3 != 0.3


def test_a_rate_that_matches_nothing_or_nothing_that_is_trained_is_refused():
    model = toy()
    with pytest.raises(InputError, match=r"optimization.rates pattern '2.\*' matches no parameter"):
        build(model, rates={"2.*": 0.1})
    model[1].requires_grad_(False)
    with pytest.raises(InputError, match=r"pattern '1.\*' matches only frozen parameters \(model.freeze"):
        build(model, rates={"1.*": 0.1})
    optimizer = build(model, lr=0.1, rates={"*.bias": 0.5})  # of which one is frozen
    assert groups(optimizer, model)["0.bias"][0] == pytest.approx(0.05)


def test_fused_adamw_is_the_default_and_takes_the_steps_of_the_unfused_one():
    ours, theirs = toy(), toy()
    optimizer = build(ours, lr=0.01, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6)
    assert optimizer.defaults["fused"]
    peer = torch.optim.AdamW(
        [
            {"params": [theirs[0].weight], "weight_decay": 0.2},
            {
                "params": [p for name, p in theirs.named_parameters() if name != "0.weight"],
                "weight_decay": 0.0,
            },
        ],
        0.01,
        (0.8, 0.9),
        1e-6,
        foreach=False,
    )
    for step in range(5):
        for model in (ours, theirs):
            gradients(model, step)
        optimizer.step()
        peer.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=name)


def test_where_nothing_is_fused_adamw_works_unfused():
    model = nn.Linear(4, 3, dtype=torch.complex64)
    optimizer = build(model, weight_decay=0, lr=0.25)
    assert type(optimizer) is torch.optim.AdamW
    before = model.bias.detach().clone()
    model.bias.grad = torch.full_like(model.bias, 3)
    optimizer.step()  # the first step of Adam is the rate, whatever the gradient
    torch.testing.assert_close(before - model.bias.detach(), torch.full_like(before, 0.25))


@pytest.mark.parametrize(
    ("make", "peer"),
    [
        (
            functools.partial(torch.optim.SGD, momentum=0.9),
            functools.partial(torch.optim.SGD, momentum=0.9),
        ),
        (torch.optim.NAdam, torch.optim.NAdam),
        (torch.optim.Adafactor, torch.optim.Adafactor),
    ],
)
def test_another_optimizer_steps_as_by_itself(make, peer):
    ours, theirs = toy(), toy()
    optimizer = build(ours, optimizer=make, lr=0.02, weight_decay=0.0)
    other = peer(theirs.parameters(), lr=0.02, weight_decay=0.0)
    for step in range(3):
        for model in (ours, theirs):
            gradients(model, step)
        optimizer.step()
        other.step()
    for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (torch.optim.LBFGS, "does not work for this model: LBFGS doesn't support per-parameter options"),
        (torch.optim.Muon, "Muon only supports 2D parameters"),
        (torch.optim.SparseAdam, "for sparse gradients"),
        (torch.optim.Rprop, "Rprop has no weight_decay, and optimization.weight_decay is 0.1"),
        (functools.partial(torch.optim.SGD, lr=0.5), "lr is 0.5 and optimization.lr 0.001, which holds"),
        (functools.partial(torch.optim.SGD, weight_decay=0.5), "weight_decay is 0.5 and"),
        (functools.partial(torch.optim.SGD, momentum=-1), "Invalid momentum value"),
    ],
)
def test_optimizers_that_would_not_do_as_they_are_told_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        build(toy(), optimizer=make)


def test_an_optimizer_that_evaluates_a_step_several_times_is_refused_with_a_single_group_too():
    with pytest.raises(InputError, match="LBFGS evaluates a step several times"):
        build(nn.Linear(3, 4, bias=False), optimizer=lambda groups: torch.optim.LBFGS(groups[0]["params"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"rates": {"model.text.*": 0}}, "model.freeze"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"optimizer": torch.optim.Adam, "betas": (0.5, 0.9)}, "AdamW's"),
    ],
)
def test_impossible_values_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Optimization(**options)


def test_a_loaded_state_brings_moments_and_no_settings():
    first, second = toy(), toy()
    saved = build(first, lr=0.1, weight_decay=0.3)
    gradients(first, 0)
    saved.step()
    resumed = build(second, lr=0.2, weight_decay=0.4, betas=(0.5, 0.6), eps=1e-3)
    resumed.load_state_dict(saved.state_dict())
    kept, decayed = resumed.param_groups
    assert (decayed["lr"], decayed["initial_lr"], decayed["weight_decay"]) == (0.2, 0.2, 0.4)
    assert kept["weight_decay"] == 0
    for group in (decayed, kept):
        assert group["betas"] == (0.5, 0.6) and group["eps"] == 1e-3
    for mine, other in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(resumed.state[mine]["exp_avg"], saved.state[other]["exp_avg"])


class Restless(torch.optim.SGD):
    """Keeps state in its groups, as Prodigy does."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["distance"] = group.get("distance", 0) + 1
        return super().step(closure)


def test_state_that_an_optimizer_keeps_in_its_groups_is_loaded():
    saved = build(toy(), optimizer=Restless)
    saved.step()
    resumed = build(toy(), optimizer=Restless, lr=0.5)
    resumed.load_state_dict(saved.state_dict())
    assert all(group["distance"] == 1 and group["lr"] == 0.5 for group in resumed.param_groups)


OTHERS = {
    "AdamW": None,
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9),
    "NAdam": torch.optim.NAdam,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
}


def fit(
    root: str,
    optimization: Optimization,
    steps: int,
    checkpoint: str | None,
    save: bool,
    *callbacks: Callback,
) -> PretrainingModule:
    """Train CLIP on tiny encoders."""
    seed_everything(3, verbose=False)
    model = PretrainingModule(ENCODER, optimization=optimization)
    watching = [*callbacks, *([StepCheckpoint(steps)] if save else [])]
    run = trainer(Path(root), steps, callbacks=watching, enable_checkpointing=save)
    run.fit(
        model,
        datamodule=SyntheticDataModule(rows=16, num_entities=20),
        ckpt_path=checkpoint,
        weights_only=True,
    )
    return model


def trained(root: str, name: str) -> dict[str, Tensor]:
    """The parameters, whole, after three steps in fp64 with layer decay, text at a tenth of the rate."""
    torch.set_default_dtype(torch.float64)
    try:
        optimization = Optimization(
            lr=1e-3, optimizer=OTHERS[name], warmup_steps=1, layer_decay=0.8, rates={"model.text.*": 0.1}
        )
        model = fit(root, optimization, 3, None, False)
        return {name: whole(p) for name, p in model.named_parameters()}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS])
def test_every_optimizer_trains_on_two_ranks_what_it_trains_on_one(pool, tmp_path, name):
    one = trained(str(tmp_path / "one"), name)
    for two in pool(2, trained, str(tmp_path / "two"), name):
        for parameter, value in one.items():
            # sums in another order, which Adam's division by small second moments enlarges
            torch.testing.assert_close(two[parameter], value, rtol=0, atol=1e-9, msg=f"{name} {parameter}")


def refused(optimizer: type[torch.optim.Optimizer]) -> str:
    layer = nn.Linear(4, 4)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(InputError) as caught:
        build(layer, optimizer=optimizer, weight_decay=0)
    return str(caught.value)


@pytest.mark.parametrize("optimizer", [torch.optim.Adafactor, torch.optim.Rprop])
def test_optimizers_that_torch_cannot_run_on_shards_are_refused(pool, optimizer):
    for said in pool(2, refused, optimizer):
        assert f"{optimizer.__name__} does not work on parameters that are sharded" in said


def test_a_resumed_run_has_the_settings_of_its_own_configuration(tmp_path):
    fit(str(tmp_path / "a"), Optimization(lr=1e-3, warmup_steps=2), 3, None, True)
    checkpoint = latest_checkpoint(tmp_path / "a")
    changed = Optimization(
        lr=5e-3,
        weight_decay=0.2,
        betas=(0.8, 0.7),
        schedule="constant",
        warmup_steps=2,
        rates={"model.text.*": 0.5},
    )
    model = fit(str(tmp_path / "b"), changed, 6, str(checkpoint), False)
    (optimizer,) = model.trainer.optimizers
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert found == {
        "1": (5e-3, 0.2),
        "1 undecayed": (5e-3, 0.0),
        "0.5": (2.5e-3, 0.2),
        "0.5 undecayed": (2.5e-3, 0.0),
    }
    assert all(group["betas"] == (0.8, 0.7) for group in optimizer.param_groups)
    assert {state["step"].item() for state in optimizer.state.values()} == {
        6
    }  # the moments are the checkpoint's


class Rates(Callback):
    """The first group's rate at each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_longer_run_goes_on_with_the_rates_of_its_length(tmp_path):
    optimization, rates = Optimization(lr=1e-3, warmup_steps=1), Rates()
    fit(str(tmp_path / "a"), optimization, 3, None, True)
    fit(str(tmp_path / "b"), optimization, 8, str(latest_checkpoint(tmp_path / "a")), False, rates)
    assert rates.seen == pytest.approx([1e-3 * optimization.lr_factor(step, 8) for step in range(3, 8)])


SGD = ["--model.optimization.optimizer", "torch.optim.SGD", "--model.optimization.optimizer.momentum", "0.9"]


@pytest.fixture
def synthetic(monkeypatch) -> list[str]:
    monkeypatch.chdir(Path(__file__).parents[3])
    return ["--config", "configs/fit/synthetic.yaml", "--trainer.accelerator", "cpu"]


def test_an_optimizer_is_chosen_on_the_command_line(synthetic):
    optimization = build_command([*synthetic, *SGD], run=False).model.optimization
    optimizer = optimization.build(dict(nn.Linear(3, 3).named_parameters()), {})
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["momentum"] == 0.9 and optimizer.param_groups[0]["lr"] == 1e-3


def test_a_printed_configuration_holds_the_optimizer_and_can_be_read_again(synthetic, tmp_path):
    def printed(*words: str) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
            cli.main(["fit", *words, "--print_config"])
        assert ended.value.code == 0
        return output.getvalue()

    shown = printed(*synthetic, *SGD)
    optimizer = yaml.safe_load(shown)["model"]["optimization"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD" and optimizer["init_args"]["momentum"] == 0.9
    file = tmp_path / "shown.yaml"
    file.write_text(shown)
    assert yaml.safe_load(printed("--config", str(file))) == yaml.safe_load(shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["torch.optim.Foo"], "model.optimization.optimizer: module 'torch.optim' has no"),
        (["torch.nn.Linear"], "model.optimization.optimizer: 'torch.nn.Linear'"),
        (["SGD", "--model.optimization.optimizer.momentun", "0.9"], "ption 'momentun' is not accepted"),
        (["SGD", "--model.optimization.optimizer.lr", "0.5"], "set only the latter"),
        (["Muon"], "Muon only supports 2D parameters"),
    ],
)
def test_a_wrong_optimizer_ends_with_one_line(synthetic, tmp_path, capsys, words, said):
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert said in complaint(capsys, "fit", *synthetic, *root, "--model.optimization.optimizer", *words)


@pytest.mark.parametrize("words", [["", "Muon"], ["=Muon"], [".class_path", "Muon"]])
def test_a_bare_name_means_torchs_optimizer_whatever_else_is_imported(synthetic, tmp_path, capsys, words):
    import timm.optim  # noqa: F401  it has a Muon, too

    words = [f"--model.optimization.optimizer{words[0]}", *words[1:]]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    assert "Muon only supports 2D parameters" in complaint(capsys, "fit", *synthetic, *root, *words)


def test_a_name_that_several_classes_have_is_said_to_be_ambiguous(synthetic, tmp_path, capsys):
    import timm.optim  # noqa: F401

    file = tmp_path / "muon.yaml"
    file.write_text("model: {optimization: {optimizer: Muon}}\n")
    line = complaint(capsys, "fit", *synthetic, "--config", str(file))
    assert "several classes 'Muon'; give one of" in line and "torch.optim.Muon" in line
