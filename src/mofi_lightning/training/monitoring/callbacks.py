"""Callbacks: the progress bar, and retrieval on held-out images during training."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from mofi_lightning.distributed import gather
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.evaluation.datasets import at_path
from mofi_lightning.evaluation.measures.retrieval import retrieval_average_precision
from mofi_lightning.types import InputError


class StepProgressBar(TQDMProgressBar):
    """The bar of the steps, with the newest loss, that of this process's rows."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What was logged for the bar, the loss not as it was logged but of the step that was just taken."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the number of the log folder, which Lightning adds
        loss = pl_module.metrics.newest("loss")  # type: ignore[union-attr, operator]
        return metrics if loss is None else {**metrics, "train/loss": loss}


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
        self._set = at_path(self.data).open()

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
