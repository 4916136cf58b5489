"""Alignment and uniformity on the unit sphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mofi_lightning import Batch, Embeddings, InputError, Objective, ObjectiveOutput, ObjectiveSpec
from mofi_lightning.distributed import gather


class Template(Objective):
    """Pairs drawn together, all images and all texts apart (Wang and Isola, arXiv 2005.10242).

    The loss is `alignment + weight * (uniformity of the images + uniformity of the texts) / 2`, over the rows
    of the global batch, of which there must be two at least. Requires 'text'.

    Args:
        spec: what the objective is built from.
        temperature: t, how fast the repulsion falls with the squared distance; the paper's is 2.
        weight: of uniformity against alignment.
    """

    requires = frozenset({"text"})

    def __init__(self, spec: ObjectiveSpec, temperature: float = 2.0, weight: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"temperature of Template is {temperature}; give a positive number")
        self.temperature = temperature
        self.weight = weight

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs its two parts."""
        assert embeddings.text is not None  # `requires` was checked before training
        # every rank computes the loss of the global batch: simple, and exact
        image, text = gather(embeddings.image), gather(embeddings.text)
        align = alignment(image, text)
        uniform = (uniformity(image, self.temperature) + uniformity(text, self.temperature)) / 2
        logs = {"alignment": align.detach(), "uniformity": uniform.detach()}
        return ObjectiveOutput(align + self.weight * uniform, logs)


def alignment(image: Tensor, text: Tensor) -> Tensor:
    """Mean squared distance of the pairs of unit vectors `[B, D]` (equation 1, alpha = 2)."""
    return (image - text).square().sum(1).mean()


def uniformity(rows: Tensor, temperature: float) -> Tensor:
    """Log of the mean Gaussian kernel of all pairs of different rows of `[B, D]`, unit norm (equation 2)."""
    logits = temperature * (2 * rows @ rows.T - 2)  # a squared distance is 2 - 2 cosine
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    pairs = len(rows) * (len(rows) - 1)
    return logits.masked_fill(itself, -torch.inf).flatten().logsumexp(0) - math.log(pairs)
