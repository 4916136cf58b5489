"""The measures' torchmetrics classes in a LightningModule, logged by Lightning itself."""

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from tests.training.runs import ENCODER, trainer
from torchmetrics import MetricCollection

from mofi_lightning.evaluation.measures.retrieval import (
    RecallAtK,
    RetrievalMAP,
    retrieval_average_precision,
)
from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule


class Measured(PretrainingModule):
    """Measures retrieval among the labelled rows that it validates on."""

    def __init__(self) -> None:
        objective = functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=40))
        super().__init__(ENCODER, objective, Optimization(lr=1e-2, warmup_steps=1))
        self.retrieval = MetricCollection({"map": RetrievalMAP(), "recall": RecallAtK(1)}, prefix="rows/")
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        embeddings = self.model.encode_image(batch["image"])
        self.retrieval.update(embeddings, batch["entity"])
        self.seen.append((embeddings, batch["entity"]))
        self.log_dict(self.retrieval, batch_size=len(batch["image"]))


def logged(root):
    """What two validations during training log, and the rows of the last one."""
    torch.set_default_dtype(torch.float64)
    try:
        seed_everything(3, verbose=False)
        model = Measured()
        run = trainer(Path(root), 4, val_check_interval=2, limit_val_batches=2)
        run.fit(model, datamodule=SyntheticDataModule(rows=12, num_entities=5))
        half = len(model.seen) // 2
        return {n: float(v) for n, v in run.logged_metrics.items() if "rows/" in n}, model.seen[half:]
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_collection_that_is_logged_gives_the_measure_of_all_rows_of_all_ranks(pool, tmp_path):
    ((one, seen),) = pool(1, logged, str(tmp_path / "one"))
    embeddings, labels = (torch.cat(part) for part in zip(*seen, strict=True))
    known = labels >= 0
    by_hand = retrieval_average_precision(
        embeddings[known].float(), labels[known], exclude_self=True
    ).nanmean()
    assert one.keys() == {"rows/map", "rows/recall"} and 0 < one["rows/recall"] < 1
    assert one["rows/map"] == pytest.approx(by_hand.item(), abs=1e-6)
    for many, _ in pool(2, logged, str(tmp_path / "two")):
        assert many == pytest.approx(one, abs=1e-9)
