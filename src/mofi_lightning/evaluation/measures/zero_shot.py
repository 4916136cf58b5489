"""Zero-shot classification with prompt ensembles, after CLIP (Radford et al., 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from mofi_lightning.evaluation.measures import scores
from mofi_lightning.evaluation.measures.embedding_states import settings_digest
from mofi_lightning.evaluation.measures.scores import TIE, exact_scores, row_blocks, unit
from mofi_lightning.evaluation.templates import check_templates, fill
from mofi_lightning.types import InputError

# texts that are embedded at a time: 1,000 classes in 80 templates are never held all at once
PROMPTS = 4_096


def class_weights(
    encode_text: Callable[[Sequence[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """One unit vector a class: embed its name in every template, normalise each, average, normalise again.

    Classes of the same name get the same vector, to the last bit.

    Args:
        encode_text: texts to embeddings `[n, D]`.
        names: of the C classes.
        templates: prompts with `{}` where the name goes.

    Returns:
        `[C, D]` fp32.

    Raises:
        InputError: no class, no template, a template without `{}`, or a class without a name.
    """
    check_templates(templates)
    if not names:
        raise InputError("zero-shot needs a class and there is none")
    blank = [row for row, name in enumerate(names) if not name.strip()]
    if blank:
        raise InputError(f"class {blank[0]} of {len(names)} has no name; give it one, or leave it out")
    row = {name: number for number, name in enumerate(dict.fromkeys(names))}
    distinct = list(row)
    size = max(1, PROMPTS // len(templates))
    weights = []
    for first in range(0, len(distinct), size):
        block = distinct[first : first + size]
        prompts = [fill(template, name) for name in block for template in templates]
        each = unit(encode_text(prompts)).unflatten(0, (len(block), len(templates)))
        weights.append(F.normalize(each.mean(dim=1), dim=1))
    return torch.cat(weights)[[row[name] for name in names]]


def zero_shot_rank(embeddings: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Rank of the true class of each image, 1 for the best; top-k accuracy is the share of ranks <= k.

    A class that ties with the true one stands before it: a constant model is never right. A class whose
    vector is zero, which could not be embedded, stands behind all others, and its own images are of rank C.

    Args:
        embeddings: images `[N, D]`; need not be normalised.
        labels: `[N]`, rows of `weights`.
        weights: `[C, D]`, of `class_weights`, or label vectors; need not be normalised.

    Returns:
        `[N]` int64 in 1..C.

    Raises:
        InputError: an embedding or a weight is not finite, or a label is no row of `weights`.
    """
    ranks = [
        (cosines >= cosines.gather(1, true[:, None]) - TIE).sum(dim=1)
        for cosines, true in cosines_in_blocks(embeddings, labels, weights)
    ]
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.long, device=embeddings.device)


def cosines_in_blocks(embeddings: Tensor, labels: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines `[B, C]` of images with classes, and the images' labels `[B]`, for B images at a time.

    They are fp64 products of fp32 unit vectors, so that ties do not depend on where a row or class stands.
    A class whose vector is zero has -inf: a cosine of 0 would beat every class that is not similar.

    Raises:
        InputError: see `zero_shot_rank`.
    """
    if len(embeddings) != len(labels):
        raise InputError(f"{len(embeddings)} embeddings but {len(labels)} labels")
    images = unit(embeddings)
    weights, labels = unit(weights.to(images.device)), labels.to(images.device)
    wrong = labels[(labels < 0) | (labels >= len(weights))].tolist()
    if wrong:
        raise InputError(f"label {wrong[0]} is none of the {len(weights)} classes")
    absent = ~weights.any(dim=1)
    for block in row_blocks(len(images), len(weights), scores.BLOCK // 2):
        cosines = exact_scores(images[block], weights)
        yield cosines.masked_fill_(absent, -torch.inf), labels[block]


class ZeroShotAccuracy(Metric):
    """Top-k accuracy of zero-shot classification, over all rows of all ranks.

    Args:
        weights: `[C, D]`, of `class_weights`.
        k: a row counts if its true class is among the k best.
        per_class: the mean over classes with rows (mean per class recall), not over rows.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    rows: Tensor
    settings: Tensor
    weights: Tensor

    def __init__(self, weights: Tensor, k: int = 1, per_class: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        self.per_class = per_class
        self.register_buffer("weights", weights, persistent=False)
        none = torch.zeros(len(weights), dtype=torch.long)
        self.add_state("right", default=none, dist_reduce_fx="sum")
        self.add_state("rows", default=none.clone(), dist_reduce_fx="sum")
        self.add_state("settings", default=settings_digest(weights, k), dist_reduce_fx="max")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add images `[B, D]` with their classes `[B]`; negative labels are left out."""
        labelled = labels >= 0
        labels = labels[labelled].to(self.rows.device)
        rank = zero_shot_rank(embeddings[labelled], labels, self.weights)
        self.right += labels[rank <= self.k].bincount(minlength=len(self.rows))
        self.rows += labels.bincount(minlength=len(self.rows))

    def compute(self) -> Tensor:
        """0-D float64 in 0..1; NaN without rows."""
        if self.per_class:
            return (self.right.double() / self.rows).nanmean()
        return self.right.sum().double() / self.rows.sum()
