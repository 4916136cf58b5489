"""Callbacks: what a run did and how fast, and retrieval on held-out images during training."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from mofi_lightning.distributed import gather
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.evaluation.datasets import open_evaluation_set
from mofi_lightning.evaluation.retrieval import retrieval_average_precision
from mofi_lightning.training.checkpointing import StepCheckpoint
from mofi_lightning.types import Batch, InputError


class RunSummary(Callback):
    """Logs images/s and the share of time spent waiting for data; at the end, writes what the run did.

    `<default_root_dir>/summary.json` holds seconds, steps, images_per_second, data_wait and bad_rows. Times
    go on over resumes and leave validation and checkpoints out; bad rows are those that this process replaced
    because they could not be read, by source and kind.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waited = 0.0
        self.images = 0
        self._started = 0.0
        self._ended = 0.0
        self._saved = 0.0
        self._window = (0.0, 0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        """Totals, so that they go on after a resume."""
        return {"seconds": self.seconds, "waited": self.waited, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the totals of a checkpoint."""
        self.seconds, self.waited, self.images = (state_dict[k] for k in ("seconds", "waited", "images"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._ended = time.perf_counter()
        self._window = (self.seconds, self.waited, self.images)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The wait for the batch ends; what was spent on a checkpoint meanwhile does not count."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saving = sum(c.seconds for c in callbacks if isinstance(c, StepCheckpoint))
        self._ended += saving - self._saved
        self._saved = saving
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step; log at the trainer's interval."""
        now = time.perf_counter()
        self.seconds += now - self._ended
        self.waited += self._started - self._ended
        self.images += len(batch["image"]) * trainer.world_size
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            seconds, waited, images = (
                a - b for a, b in zip((self.seconds, self.waited, self.images), self._window, strict=True)
            )
            self._window = (self.seconds, self.waited, self.images)
            pl_module.log("train/images_per_second", images / seconds)
            pl_module.log("train/data_wait", waited / seconds)
        self._ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out."""
        self._ended = time.perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary."""
        bad_rows = dict(getattr(getattr(trainer, "datamodule", None), "bad_rows", {}))
        if trainer.is_global_zero and self.seconds > 0:
            for kind, count in bad_rows.items():
                print(f"replaced {count:,} rows that could not be read: {kind}")
            summary = {
                "seconds": round(self.seconds, 2),
                "steps": trainer.global_step,
                "images_per_second": round(self.images / self.seconds, 1),
                "data_wait": round(self.waited / self.seconds, 4),
                "bad_rows": bad_rows,
            }
            path = Path(trainer.default_root_dir) / "summary.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(summary, indent=2) + "\n")
            os.replace(partial, path)


class StepProgressBar(TQDMProgressBar):
    """The bar of the steps, without the number of the log folder that Lightning adds."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What was logged for the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class RetrievalValidation(Callback):
    """Logs `val/map`: retrieval mAP (self excluded) of held-out labelled images, at every validation.

    The images are split over the ranks, every rank runs the same number of forwards.

    Args:
        data: a labelled set, as `mofi evaluate` takes it (for instance `pairs/validation.parquet`).
        batch_size: images a forward.
    """

    def __init__(self, data: Path, batch_size: int = 256) -> None:
        self.data = data
        self.batch_size = batch_size
        self._images: Tensor | None = None
        self._labels = torch.empty(0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find a missing data set before training starts."""
        self._set = open_evaluation_set(self.data)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to wait for a validation that never comes."""
        if not trainer.val_dataloaders:
            raise InputError(
                "RetrievalValidation works at every validation, and there is none; set data.validation"
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embed this rank's share of the images, gather, and log the mAP."""
        if trainer.sanity_checking:
            return
        model: DualEncoder = pl_module.model  # type: ignore[assignment]
        if self._images is None:
            self._decode(model.preprocess, trainer.world_size)
        assert self._images is not None
        mine = self._images[trainer.global_rank :: trainer.world_size]
        embeddings = torch.cat(
            [model.encode_image(images.to(pl_module.device)) for images in mine.split(self.batch_size)]
        )
        labels = self._labels[trainer.global_rank :: trainer.world_size].to(embeddings.device)
        embeddings, labels = gather(embeddings), gather(labels)
        known = labels >= 0
        precision = retrieval_average_precision(embeddings[known], labels[known], exclude_self=True)
        pl_module.log("val/map", precision.nanmean().float(), prog_bar=True)

    def _decode(self, preprocess: Preprocess, world_size: int) -> None:
        """Decode once; rows of padding (label -1) give every rank the same number of images."""
        images, labels = [], []
        for data, label in zip(self._set.images, self._set.labels().tolist(), strict=True):
            try:
                images.append(preprocess(decode(data)))
                labels.append(label)
            except InputError:
                continue
        if not images:
            raise InputError(f"{self.data} holds no image that can be decoded")
        padding = -len(images) % world_size
        self._images = torch.stack(images + images[:1] * padding)
        self._labels = torch.tensor(labels + [-1] * padding)
