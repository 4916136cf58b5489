"""DeViSE's hierarchical precision@k (Frome et al., NIPS 2013, section 4.1 and appendix).

hp@k is the share of the k best labels that are in the correct set of the true one: the label itself, grown by
whole rings of distance in the hierarchy until it holds at least k labels. hp@1 is the accuracy. Flat hit@k is
the share of images with `zero_shot_rank` <= k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mofi_lightning.evaluation.measures.embedding_states import settings_digest
from mofi_lightning.evaluation.measures.label_hierarchy import LabelHierarchy
from mofi_lightning.evaluation.measures.scores import TIE
from mofi_lightning.evaluation.measures.zero_shot import cosines_in_blocks
from mofi_lightning.types import InputError


def hierarchical_precision(
    embeddings: Tensor,
    labels: Tensor,
    weights: Tensor,
    hierarchy: LabelHierarchy,
    k: Sequence[int] = (2, 5, 10, 20),
) -> dict[int, Tensor]:
    """Share of each image's k best labels that are in the correct set of its own.

    Where the last of the k places is tied, wrong labels take it first. Candidates are the rows of `weights`,
    and only they count in correct sets.

    Args:
        embeddings: images `[N, D]`; need not be normalised.
        labels: `[N]`, rows of `weights`.
        weights: vectors of the labels `[C, D]`; need not be normalised.
        hierarchy: of the C labels, in the order of `weights`.
        k: numbers of results; repeated ones count once.

    Returns:
        For each k `[N]` float64 in 0..1; NaN for an image whose label the hierarchy connects to fewer than k.

    Raises:
        InputError: a k is not in 1..C, the hierarchy is of other labels, or see `zero_shot_rank`.
    """
    values: dict[int, list[Tensor]] = {n: [] for n in k}
    k = tuple(values)
    for n, found in _found_in_blocks(embeddings, labels, weights, hierarchy, k):
        values[n].append(found.double().where(found >= 0, torch.nan) / n)
    none = torch.zeros(0, dtype=torch.float64)
    return {n: torch.cat(blocks) if blocks else none for n, blocks in values.items()}


def _found_in_blocks(
    embeddings: Tensor, labels: Tensor, weights: Tensor, hierarchy: LabelHierarchy, k: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """For blocks of images, and each k: how many of the k best are in the correct set; -1 where undefined."""
    classes = len(hierarchy.labels)
    if classes != len(weights):
        raise InputError(f"the hierarchy is of {classes} labels, but there are {len(weights)} candidates")
    wrong = [n for n in k if not 1 <= n <= classes]
    if wrong:
        raise InputError(
            f"hierarchical precision@{wrong[0]} of {classes} candidates is not defined; give 1 to {classes}"
        )
    for cosines, true in cosines_in_blocks(embeddings, labels, weights):
        best = cosines.topk(max(k, default=1), dim=1).values
        rows, row = true.unique(return_inverse=True)
        for n in k:
            correct = torch.zeros(len(rows), classes, dtype=torch.bool)
            for i, label in enumerate(rows.tolist()):
                correct[i, hierarchy.correct_rows(label, n)] = True
            correct = correct.to(cosines.device)
            defined = (correct.sum(dim=1) >= n)[row]
            correct = correct[row]
            last = best[:, n - 1 : n]
            above = cosines > last + TIE
            wrong_ties = ((cosines >= last - TIE) & ~above & ~correct).sum(dim=1)
            places = (n - above.sum(dim=1) - wrong_ties).clamp(min=0)
            found = (above & correct).sum(dim=1) + places
            yield n, found.where(defined, -1)


class HierarchicalPrecision(Metric):
    """Mean `hierarchical_precision` over all rows of all ranks.

    Args:
        weights: vectors of the labels `[C, D]`.
        hierarchy: of the labels, in the order of `weights`.
        k: number of results.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    found: Tensor
    rows: Tensor
    settings: Tensor
    weights: Tensor

    def __init__(self, weights: Tensor, hierarchy: LabelHierarchy, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hierarchy = hierarchy
        self.k = k
        self.register_buffer("weights", weights, persistent=False)
        self.add_state("found", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        settings = settings_digest(weights, k, hierarchy.labels, hierarchy.edges)
        self.add_state("settings", default=settings, dist_reduce_fx="max")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add images `[B, D]` with their classes `[B]`; negative labels are left out."""
        labelled = labels >= 0
        rows = (embeddings[labelled], labels[labelled], self.weights)
        for _, found in _found_in_blocks(*rows, self.hierarchy, (self.k,)):
            self.found += found[found >= 0].sum()
            self.rows += (found >= 0).sum()

    def compute(self) -> Tensor:
        """0-D float64 in 0..1; NaN if the hierarchy defines it for no row."""
        return self.found.double() / self.rows / self.k
