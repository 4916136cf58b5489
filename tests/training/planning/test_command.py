"""`mofi plan` from its words to its numbers."""

import re
from pathlib import Path

import pytest
import torch

from mofi_lightning import cli
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.training.command import build
from mofi_lightning.training.planning.command import _SizedTokenizer, plan
from mofi_lightning.training.planning.options import parse
from mofi_lightning.types import InputError

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "fit"
SYNTHETIC = ["--config", str(CONFIGS / "synthetic.yaml"), "--gpu-memory", "0.1"]
OPT_VOCABULARY = 50_272


def planned(*words: str):
    return plan(*parse(list(words)))


@pytest.mark.parametrize("size, image, text", [("b16", 86, 64), ("l14", 303, 124), ("h14", 631, 354)])
def test_the_presets_have_as_many_parameters_as_published(size, image, text, tmp_path):
    words = ["--config", str(CONFIGS / f"mofi_{size}.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    config = build([*words, "--trainer.logger", "false"], run=False).model.encoder_config
    with torch.device("meta"):
        model = DualEncoder.from_config(config, _SizedTokenizer(OPT_VOCABULARY))
    millions = [
        sum(p.numel() for p in tower.encoder.parameters()) / 1e6 for tower in (model.image, model.text)
    ]
    assert millions[0] == pytest.approx(image, abs=1)
    assert millions[1] == pytest.approx(text, abs=1)


def test_a_plan_splits_the_state_over_the_gpus_and_tells_the_time():
    one = planned(*SYNTHETIC, "--gpus", "1", "--mfu", "0.5", "--tflops", "2")
    four = planned(*SYNTHETIC, "--gpus", "4")
    parameters = sum(one.step.parts.values())
    assert one.step.held["parameters"] == one.step.held["gradients"] == 4 * parameters
    assert one.step.held["entity table"] == 4 * 100 * (64 + 1)
    assert four.step.total["parameters"] == 4 * parameters
    assert four.step.held["parameters"] == pytest.approx(parameters, rel=0.05)
    assert four.step.held["entity table"] == 4 * 25 * (64 + 1)
    assert one.images_per_second == pytest.approx(0.5 * 2e12 / (3 * one.row_flops))
    assert one.days == pytest.approx(50 * 64 / one.images_per_second / 86_400)
    assert not one.step.received and one.largest_batch > four.batch == 64


def test_gathers_move_every_parameter_to_every_gpu_and_back():
    step = planned(*SYNTHETIC, "--gpus", "4").step
    whole = step.total["parameters"] * 3 / 4
    gathered = step.received["parameters and gradients", "all-gather", 4]
    scattered = step.received["parameters and gradients", "reduce-scatter", 4]
    assert scattered == pytest.approx(whole, rel=0.05)
    assert whole < gathered < 2.1 * whole  # again in the backward, but for what is still there


def test_copies_are_all_reduced_between_them():
    words = ("--trainer.strategy", "mofi_lightning.training.ShardedStrategy")
    nodes = ("--trainer.strategy.init_args.replicate", "nodes", "--gpus-per-node", "2")
    step = planned(*SYNTHETIC, "--gpus", "4", *words, *nodes).step
    assert step.total["parameters"] == 2 * 4 * sum(step.parts.values())
    shard = step.total["parameters"] / 4
    reduced = step.received["parameters and gradients", "all-reduce", 2]
    assert reduced == pytest.approx(shard, rel=0.05)


@pytest.mark.parametrize(
    "words, message",
    [
        ([*SYNTHETIC, "--gpus", "3"], "64 rows cannot be split over --gpus 3"),
        ([*SYNTHETIC, "--gpus", "0"], "--gpus is 0"),
        ([*SYNTHETIC, "--entities", "-1"], "--entities is -1"),
        ([*SYNTHETIC, "--model.encoder.tokenizer", "nowhere.json"], "--text-vocabulary"),
        (["--config", str(CONFIGS / "entity.yaml"), "--text-vocabulary", "300"], "--entities"),
        ([*SYNTHETIC, "--trainer.precision", "64-true"], "trainer.precision is 64"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_way_out(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        planned(*words)


def test_the_verb_prints_memory_communication_and_time(capsys):
    cli.main(["plan", *SYNTHETIC, "--gpus", "2", "--entities", "5000"])
    printed = capsys.readouterr().out
    for words in ("entity table", "all-gather", "largest global batch that fits", "images/s"):
        assert words in printed


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_row_of_the_documentation_is_what_the_command_says():
    row = re.search(r"\| H/14 \| 2 M \| 64 \|(.+)\|", (ROOT / "docs" / "scaling.md").read_text())
    assert row is not None
    holds, peak, largest, speed, days = (float(cell.replace(",", "")) for cell in row[1].split("|"))
    made = planned(
        "--config",
        str(CONFIGS / "mofi_h14.yaml"),
        *("--gpus", "64", "--entities", "2000000", "--text-vocabulary", str(OPT_VOCABULARY)),
    )
    assert made.step.held.total() / 1e9 == pytest.approx(holds, abs=0.006)
    assert made.peak / 1e9 == pytest.approx(peak, rel=0.02)
    assert made.largest_batch == pytest.approx(largest, rel=0.02)
    assert made.images_per_second == pytest.approx(speed, rel=0.001)
    assert made.days == pytest.approx(days, abs=0.06)
