"""Weighted k-nearest-neighbour classification on frozen embeddings.

Sources: Wu et al., CVPR 2018 (weights exp(similarity / T)); the sweep over k and T is MOFI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mofi_lightning.evaluation.measures.retrieval import BLOCK, unit
from mofi_lightning.types import InputError

NEIGHBOURS = (1, 20, 200)
TEMPERATURES = (0.01, 0.03, 0.07)


@dataclass(frozen=True)
class KNNResult:
    """Accuracies of a sweep.

    Attributes:
        accuracy: by (k, T), each in 0..1.
        best: the (k, T) of the highest accuracy; the smallest k, then T, among equals.
        correct: `[Q]` float64, whether each query is right under `best`.
    """

    accuracy: dict[tuple[int, float], float]
    best: tuple[int, float]
    correct: Tensor


def weighted_knn(
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperatures: Sequence[float] = TEMPERATURES,
) -> KNNResult:
    """Classify each query by the votes exp(similarity / T) of its k most similar rows.

    Without `index` the queries search each other, each left out of its own neighbours. A k beyond the rows
    there are means all of them. Equal votes go to the lowest class id.

    Args:
        embeddings: queries `[Q, D]`; need not be normalised.
        labels: their classes `[Q]`, 0 or more.
        index: rows that vote `[N, D]`.
        index_labels: their classes `[N]`, 0 or more.
        k: numbers of neighbours to try.
        temperatures: values of T to try.
    """
    if (index is None) != (index_labels is None):
        raise InputError("`index` and `index_labels` go together")
    leave_one_out = index is None
    queries = unit(embeddings)
    rows = queries if index is None else unit(index)
    classes = labels.to(rows.device) if index_labels is None else index_labels.to(rows.device)
    labels = labels.to(rows.device)
    available = len(rows) - leave_one_out
    if available < 1:
        raise InputError(f"kNN needs at least one neighbour; there are {len(rows)} rows")
    number_of_classes = int(classes.max()) + 1

    sweep = [(n, t) for n in sorted(k) for t in sorted(temperatures)]
    correct = torch.zeros(len(sweep), len(queries), dtype=torch.float64, device=rows.device)
    size = max(1, BLOCK // max(len(rows), number_of_classes))
    for first in range(0, len(queries), size):
        block = slice(first, min(first + size, len(queries)))
        scores = queries[block] @ rows.T
        if leave_one_out:
            scores.diagonal(offset=first).fill_(-torch.inf)
        near = scores.topk(min(max(k), available), dim=1)
        # fp64 and relative to the nearest: exp(1 / 0.01) does not fit into fp32
        gap = near.values.double() - near.values[:, :1].double()
        voters = classes[near.indices]
        for number, (n, temperature) in enumerate(sweep):
            votes = torch.zeros(len(gap), number_of_classes, dtype=torch.float64, device=rows.device)
            votes.scatter_add_(1, voters[:, :n], (gap[:, :n] / temperature).exp())
            correct[number, block] = (votes.argmax(dim=1) == labels[block]).double()
    accuracy = {setting: float(correct[i].mean()) for i, setting in enumerate(sweep)}
    best = max(range(len(sweep)), key=lambda i: accuracy[sweep[i]])
    return KNNResult(accuracy, sweep[best], correct[best])


class KNNAccuracy(Metric):
    """Best accuracy of `weighted_knn`'s sweep, each row classified by all others, over all ranks.

    Rows with a negative label are left out.

    Args:
        k: numbers of neighbours to try.
        temperatures: values of T to try.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(
        self,
        k: Sequence[int] = NEIGHBOURS,
        temperatures: Sequence[float] = TEMPERATURES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k = tuple(k)
        self.temperatures = tuple(temperatures)
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add rows: `embeddings` `[B, D]`, `labels` `[B]` integer."""
        labelled = labels >= 0
        self.embeddings.append(embeddings.detach()[labelled].float())
        self.labels.append(labels[labelled])

    def compute(self) -> Tensor:
        """0-D float64 in 0..1."""
        result = weighted_knn(
            dim_zero_cat(self.embeddings),
            dim_zero_cat(self.labels),
            k=self.k,
            temperatures=self.temperatures,
        )
        return result.correct.mean()
