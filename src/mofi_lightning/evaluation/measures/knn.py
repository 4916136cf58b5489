"""Weighted k-nearest-neighbour classification on frozen embeddings.

Sources: Wu et al., CVPR 2018 (weights exp(similarity / T)); the sweep over k and T is MOFI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mofi_lightning.evaluation.measures import scores as scoring
from mofi_lightning.evaluation.measures.embedding_states import LabelledEmbeddings
from mofi_lightning.evaluation.measures.neighbours import top_k
from mofi_lightning.evaluation.measures.scores import TIE, unit
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
    there are means all of them. Of rows that tie for the k-th place those of the lowest class vote; equal
    votes go to the lowest class: the order of rows does not matter.

    Args:
        embeddings: queries `[Q, D]`; need not be normalised.
        labels: their classes `[Q]`, 0 or more.
        index: rows that vote `[N, D]`.
        index_labels: their classes `[N]`, 0 or more.
        k: numbers of neighbours to try.
        temperatures: values of T to try, above 0.

    Raises:
        InputError: arguments that do not fit together, no row that could vote, or an embedding that is not
            finite.
    """
    if (index is None) != (index_labels is None):
        raise InputError("`index` and `index_labels` go together")
    if not (k and temperatures and min(k) > 0 and min(temperatures) > 0):
        raise InputError(f"kNN needs k and T above 0, at least one each; got k={k}, T={temperatures}")
    queries = unit(embeddings)
    rows = queries if index is None else unit(index)
    classes = (labels if index_labels is None else index_labels).to(rows.device)
    for name, vectors, theirs in (("queries", queries, labels), ("index", rows, classes)):
        if len(vectors) != len(theirs):
            raise InputError(f"{len(vectors)} embeddings but {len(theirs)} labels of the {name}")
    labels = labels.to(rows.device)
    available = len(rows) - (index is None)
    if available < 1 or not len(queries):
        raise InputError(
            f"kNN needs a query and a neighbour; there are {len(queries)} and {max(0, available)}"
        )

    # by class, so that the first of tied rows is that of the lowest class
    classes, order = classes.sort(stable=True)
    place = order.argsort() if index is None else None
    rows = rows[order]

    sweep = [(n, t) for n in sorted(set(k)) for t in sorted(set(temperatures))]
    correct = torch.zeros(len(sweep), len(queries), dtype=torch.float64, device=rows.device)
    for block in scoring.row_blocks(len(queries), 8 * min(max(k), available), scoring.BLOCK):
        left_out = None if place is None else place[block]
        near = top_k(queries[block], rows, max(k), left_out=left_out)
        gap, voters = near.scores - near.scores[:, :1], classes[near.rows]
        for number, (n, temperature) in enumerate(sweep):
            # relative to the nearest: exp(1 / 0.01) is beyond fp32
            guess = _elected(voters[:, :n], (gap[:, :n] / temperature).exp())
            correct[number, block] = (guess == labels[block]).double()
    accuracy = {setting: float(correct[i].mean()) for i, setting in enumerate(sweep)}
    best = max(range(len(sweep)), key=lambda i: accuracy[sweep[i]])
    return KNNResult(accuracy, sweep[best], correct[best])


def _elected(voters: Tensor, weights: Tensor) -> Tensor:
    """Class `[B]` with the most votes of `[B, k]`; the lowest of equals.

    Votes are counted among the classes that vote: memory does not grow with the number of classes.
    """
    classes, order = voters.sort(dim=1, stable=True)
    # number of each class among those that vote for this query
    starts = torch.ones_like(classes)
    starts[:, 1:] = (classes[:, 1:] != classes[:, :-1]).long()
    number = starts.cumsum(dim=1) - 1
    votes = torch.zeros_like(weights).scatter_add_(1, number, weights.gather(1, order))
    most = votes.amax(dim=1, keepdim=True)
    # argmax takes the first of equals only where they are equal to the last bit
    first = (votes >= most * (1 - TIE)).long().argmax(dim=1, keepdim=True)
    return classes.gather(1, (number == first).long().argmax(dim=1, keepdim=True)).squeeze(1)


class KNNAccuracy(LabelledEmbeddings):
    """Best accuracy of `weighted_knn`'s sweep, each row classified by all others; see `LabelledEmbeddings`.

    Args:
        k: numbers of neighbours to try.
        temperatures: values of T to try.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(
        self,
        k: Sequence[int] = NEIGHBOURS,
        temperatures: Sequence[float] = TEMPERATURES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.k = tuple(k)
        self.temperatures = tuple(temperatures)

    def measure(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Share of the rows that are right; NaN for a single row, which has no neighbour."""
        if len(labels) < 2:
            return torch.tensor(torch.nan, dtype=torch.float64, device=labels.device)
        result = weighted_knn(embeddings, labels, k=self.k, temperatures=self.temperatures)
        return result.correct.mean()
