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
    there are means all of them. Ties never favour the model: of rows that tie for the k-th place those of
    the true class come last, of the others those vote that make another class the strongest, and with equal
    votes the true class loses. Neither the order of rows nor the numbers of classes matter.

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

    sweep = [(n, t) for n in sorted(set(k)) for t in sorted(set(temperatures))]
    correct = torch.zeros(len(sweep), len(queries), dtype=torch.float64, device=rows.device)
    last = min(max(k), available) - 1
    found = min(last + 2, available)
    pending = torch.arange(len(queries), device=rows.device)
    while len(pending):
        cut = []
        for query in pending.split(max(1, scoring.BLOCK // (8 * found))):
            near = top_k(queries[query], rows, found, left_out=query if index is None else None)
            correct[:, query] = _right(near.scores, classes[near.rows], labels[query], sweep)
            cut.append(query[near.scores[:, -1] == near.scores[:, last]])
        # where the last row still ties with the k-th others may: all of them must be seen
        pending = torch.cat(cut) if found < available else pending[:0]
        found = min(4 * found, available)
    accuracy = {setting: float(correct[i].mean()) for i, setting in enumerate(sweep)}
    best = max(range(len(sweep)), key=lambda i: accuracy[sweep[i]])
    return KNNResult(accuracy, sweep[best], correct[best])


def _right(scores: Tensor, voters: Tensor, labels: Tensor, sweep: Sequence[tuple[int, float]]) -> Tensor:
    """Whether the true class wins, `[len(sweep), B]` float64.

    `scores` and classes `voters` are of neighbours `[B, L]`: scores descend, those that tie are equal, and
    all rows that tie with the k-th are among the L. Votes are counted among the classes that vote: memory
    does not grow with the number of classes.
    """
    voters, order = voters.sort(dim=1, stable=True)
    # number of each class among those that vote for this query
    starts = torch.zeros_like(voters)
    starts[:, 1:] = (voters[:, 1:] != voters[:, :-1]).long()
    number, true = starts.cumsum(dim=1), voters == labels[:, None]
    score, nearest = scores.gather(1, order), scores[:, :1]
    right = torch.empty(len(sweep), len(labels), dtype=torch.float64, device=scores.device)
    for row, (k, temperature) in enumerate(sweep):
        last = scores[:, min(k, scores.shape[1]) - 1, None]
        above, tied = score > last, score == last
        places = min(k, scores.shape[1]) - above.sum(dim=1, keepdim=True)
        # relative to the nearest: exp(1 / 0.01) is beyond fp32
        weight = ((score - nearest) / temperature).exp() * above
        last_weight = ((last - nearest) / temperature).exp()
        rivals = tied & ~true
        votes = torch.zeros_like(weight).scatter_add_(1, number, weight * ~true)
        more = torch.zeros_like(number).scatter_add_(1, number, rivals.long()).minimum(places)
        strongest = (votes + more * last_weight).amax(dim=1)
        left = (places - rivals.sum(dim=1, keepdim=True)).clamp(min=0)
        own = (weight * true).sum(dim=1) + (left * last_weight).squeeze(1)
        # a difference of `TIE` between scores is one of TIE / T between votes
        right[row] = (own * (1 - TIE * max(1.0, 1 / temperature)) > strongest).double()
    return right


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
