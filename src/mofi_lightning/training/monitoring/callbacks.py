"""The progress bar."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


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
