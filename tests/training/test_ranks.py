"""Two processes train what one process trains."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from tests.training.runs import ENCODER, train_mofi, train_precision, trainer, validate_mofi, whole

from mofi_lightning.distributed import global_mean
from mofi_lightning.encoders import checkpoint
from mofi_lightning.objectives.base import Objective
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.types import Batch, Embeddings, ObjectiveOutput, ObjectiveSpec


class Scores(Objective):
    """Learned scores of the images' features and the texts' tokens, the embeddings left aside."""

    requires = frozenset({"text_tokens"})

    def __init__(self, spec: ObjectiveSpec) -> None:
        super().__init__()
        assert spec.text_feature_dim is not None
        self.image = torch.nn.Linear(spec.feature_dim, 1)
        self.text = torch.nn.Linear(spec.text_feature_dim, 1)

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        assert embeddings.image_features is not None and embeddings.text_tokens is not None
        score = (self.image(embeddings.image_features) - self.text(embeddings.text_tokens[:, 0])).squeeze(1)
        every = torch.ones_like(score, dtype=torch.bool)
        return ObjectiveOutput(global_mean(score.cos(), every), {})


def train_objective(root: str, name: str) -> dict[str, torch.Tensor]:
    """The parameters after three steps in fp64, with weight decay."""
    objective: Any = Scores
    if name == "filip":
        from mofi_filip import FILIP

        objective = functools.partial(FILIP, token_dim=8)
    torch.set_default_dtype(torch.float64)
    try:
        seed_everything(3, verbose=False)
        model = PretrainingModule(ENCODER, objective, Optimization(lr=1e-2, warmup_steps=1, weight_decay=0.5))
        run = trainer(Path(root), 3)
        run.fit(model, datamodule=SyntheticDataModule(rows=24, num_entities=101))
        return {name: whole(p) for name, p in model.named_parameters()}
    finally:
        torch.set_default_dtype(torch.float32)


def test_five_steps_of_mofi_on_two_ranks_equal_one_rank(pool, tmp_path):
    (one,) = pool(1, train_mofi, str(tmp_path / "one"), torch.float64, 5)
    two = pool(2, train_mofi, str(tmp_path / "two"), torch.float64, 5)
    assert one["global_step"] == 5 and len(one["losses"]) == 5
    mean_losses = torch.tensor([result["losses"] for result in two], dtype=torch.float64).mean(0)
    assert mean_losses.tolist() == pytest.approx(one["losses"], abs=1e-9)
    assert {"objective.objectives.entity.table", "objective.objectives.entity.second_moment"} <= set(
        one["state"]
    )
    assert one["state"].keys() == two[0]["state"].keys()
    for name, expected in one["state"].items():
        torch.testing.assert_close(
            two[0]["state"][name], expected, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", ["scores", "filip"])
def test_what_an_objective_leaves_aside_is_decayed_on_no_number_of_ranks(pool, tmp_path, name):
    if name == "filip":
        pytest.importorskip("mofi_filip")
    (one,) = pool(1, train_objective, str(tmp_path / "one"), name)
    for two in pool(2, train_objective, str(tmp_path / "two"), name):
        assert two.keys() == one.keys() >= {"model.image.projection.weight", "model.text.projection.weight"}
        for parameter, expected in one.items():
            torch.testing.assert_close(
                two[parameter], expected, rtol=0, atol=1e-9, msg=lambda m, n=parameter: f"{n}: {m}"
            )


def test_replicated_ranks_hold_the_same_parameters_and_buffers(pool, tmp_path):
    ranks = pool(2, train_mofi, str(tmp_path), torch.float32, 4, 2)
    for name, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][name]), name


def test_five_steps_move_every_parameter_and_the_table(pool, tmp_path):
    (none,) = pool(1, train_mofi, str(tmp_path / "a"), torch.float64, 1)
    (five,) = pool(1, train_mofi, str(tmp_path / "b"), torch.float64, 5)
    still = [name for name, value in five["state"].items() if torch.equal(value, none["state"][name])]
    assert {name.rpartition(".")[2] for name in still} <= {"mean", "std", "position_ids"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_resumed_from_its_checkpoint_ends_as_the_undisturbed_one(pool, tmp_path, ranks):
    undisturbed = pool(ranks, train_mofi, str(tmp_path / "whole"), torch.float64, 6)
    first = pool(ranks, train_mofi, str(tmp_path / "cut"), torch.float64, 6, 1, None, 3)
    assert [len(result["losses"]) for result in first] == [3] * ranks
    newest = latest_checkpoint(tmp_path / "cut")
    assert newest is not None and newest.name == "step=00000003.ckpt" and newest.is_dir()
    checkpoint.check(newest)
    rest = pool(ranks, train_mofi, str(tmp_path / "cut"), torch.float64, 6, 1, str(newest))
    for straight, cut, resumed in zip(undisturbed, first, rest, strict=True):
        assert cut["losses"] + resumed["losses"] == straight["losses"]
        assert straight["state"].keys() == resumed["state"].keys()
        for name, value in straight["state"].items():
            assert torch.equal(value, resumed["state"][name]), name


def test_ranks_without_labels_validate_with_the_others(pool, tmp_path, emoji_slice):
    # the last quarter of a synthetic batch has no labels: one of four ranks has none
    four = pool(4, validate_mofi, str(tmp_path), str(emoji_slice / "validation.parquet"))
    (one,) = pool(1, validate_mofi, str(tmp_path / "one"), str(emoji_slice / "validation.parquet"))
    for metrics in four:
        assert metrics.keys() == one.keys() >= {"val/loss", "val/map", "val/contrastive/loss"}
        for name in ("val/loss", "val/map", "val/contrastive/loss"):
            assert metrics[name] == pytest.approx(one[name], abs=1e-5), name


def test_bf16_on_two_ranks_starts_where_one_rank_does_within_its_rounding(pool, tmp_path):
    (one,) = pool(1, train_precision, str(tmp_path / "one"), 5, "bf16-mixed")
    two = torch.tensor(pool(2, train_precision, str(tmp_path / "two"), 5, "bf16-mixed")).mean(0)
    assert two[0].item() == pytest.approx(one[0], rel=0.005)
    assert two.isfinite().all() and len(two) == len(one) == 5
