"""Zero-shot classification with prompt ensembles, after CLIP (Radford et al., 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from mofi_lightning.evaluation.measures.retrieval import unit
from mofi_lightning.types import InputError

# the bare name, and the most general things one says of an image of something
TEMPLATES = ("{}", "a picture of {}", "an image of {}", "a drawing of {}", "a photo of {}")


def class_weights(
    encode_text: Callable[[Sequence[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """One unit vector a class: embed its name in every template, normalise each, average, normalise again.

    Args:
        encode_text: texts to embeddings `[n, D]`.
        names: of the C classes.
        templates: prompts with `{}` where the name goes.

    Returns:
        `[C, D]` fp32.

    Raises:
        InputError: no template, or one without `{}`.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise InputError(f"template {wrong[0]!r} has no '{{}}'" if wrong else "zero-shot needs a template")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    each = unit(encode_text(prompts)).unflatten(0, (len(names), len(templates)))
    return F.normalize(each.mean(dim=1), dim=1)


def zero_shot_rank(embeddings: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Rank of the true class of each image, 1 for the best; top-k accuracy is the share of ranks <= k.

    A class that ties with the true one stands before it.

    Args:
        embeddings: images `[N, D]`; need not be normalised.
        labels: `[N]`, rows of `weights`.
        weights: `[C, D]`, of `class_weights`.

    Returns:
        `[N]` int64 in 1..C.
    """
    logits = unit(embeddings) @ weights.to(embeddings.device).float().T
    true = logits.gather(1, labels.to(logits.device)[:, None])
    return (logits >= true).sum(dim=1)


class ZeroShotAccuracy(Metric):
    """Top-k accuracy of zero-shot classification, over all rows of all ranks.

    Args:
        weights: `[C, D]`, of `class_weights`.
        k: a row counts if its true class is among the k best.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    rows: Tensor
    weights: Tensor

    def __init__(self, weights: Tensor, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        self.register_buffer("weights", weights, persistent=False)
        self.add_state("right", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add images `[B, D]` with their classes `[B]`; negative labels are left out."""
        labelled = labels >= 0
        if labelled.any():
            rank = zero_shot_rank(embeddings[labelled], labels[labelled], self.weights)
            self.right += (rank <= self.k).sum()
        self.rows += labelled.sum()

    def compute(self) -> Tensor:
        """0-D float64 in 0..1; NaN without rows."""
        return self.right.double() / self.rows
