"""The objective."""

from __future__ import annotations

import math

import torch
from torch import nn

from mofi_lightning.objectives import Objective
from mofi_lightning.types import Batch, Embeddings, ObjectiveOutput, ObjectiveSpec
from mofi_siglip.sigmoid import sigmoid_loss


class SigLIP(Objective):
    """Sigmoid loss over all pairs of the global batch (Zhai et al., arXiv 2303.15343).

    A pair counts by itself, not against its row, so a rank needs neither all texts nor any sum over ranks:
    the texts travel round the ring. Requires 'text'.

    As in the paper a row's only positive is its own pair. Other pairs of the same entity or text are
    negatives here, wrongly so: where texts repeat, `CLIP` knows better (`repeats`).

    Args:
        spec: what the objective is built from.
        logit_scale_init: natural logarithm of the scale at the start, the paper's t'.
        logit_bias_init: the bias at the start; makes up for the many negatives.
    """

    requires = frozenset({"text"})

    def __init__(
        self,
        spec: ObjectiveSpec,
        logit_scale_init: float = math.log(10),
        logit_bias_init: float = -10.0,
    ) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((1,), logit_scale_init))
        self.logit_bias = nn.Parameter(torch.full((1,), logit_bias_init))

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs scale and bias."""
        assert embeddings.text is not None  # `requires` was checked before training
        scale = self.logit_scale.exp()
        loss = sigmoid_loss(embeddings.image, embeddings.text, scale, self.logit_bias)
        logs = {"logit_scale": scale, "logit_bias": self.logit_bias}
        return ObjectiveOutput(loss, {name: value.detach().squeeze(0) for name, value in logs.items()})
