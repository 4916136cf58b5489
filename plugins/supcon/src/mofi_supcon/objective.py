"""The objective."""

from __future__ import annotations

from mofi_lightning.distributed import gather, gather_labels, global_mean, rank
from mofi_lightning.objectives import Objective
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec
from mofi_supcon.loss import supcon


class SupCon(Objective):
    """Supervised contrastive loss of images with labels (Khosla et al., arXiv 2004.11362, equation 2).

    The anchors are the labelled rows whose entity the global batch holds more than once; an anchor is drawn
    to the mean of these others (the sum over positives is outside the logarithm: L_out) and away from all
    other labelled rows. Unlabelled rows take no part, not even as negatives: they may show any entity. The
    loss is the mean over the anchors of the global batch, and 0 where there is none. Requires 'entity'.

    Args:
        spec: what the objective is built from.
        temperature: of the similarities; the paper's is 0.1.
    """

    requires = frozenset({"entity"})

    def __init__(self, spec: ObjectiveSpec, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature of SupCon is {temperature}; give a positive number, such as 0.1")
        self.temperature = temperature

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the share of rows that are anchors."""
        images = embeddings.image
        losses, anchors = supcon(
            images,
            gather(images),
            gather_labels(batch["entity"]),
            first=rank() * len(images),
            temperature=self.temperature,
        )
        share = anchors.to(losses.dtype).mean()
        return ObjectiveOutput(global_mean(losses, anchors), {"anchors": share})
