"""Image retrieval after the protocol of GPR1200: mean average precision, mAP@R, recall@k.

Every image queries all images. Ties are exact and independent of the order of rows: a positive's rank counts
every row that scores at least as much, so tied rows share the last rank of their group (as in scikit-learn's
`average_precision_score`), and a constant embedding scores what it is worth. Scores may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mofi_lightning.evaluation.measures.embedding_states import LabelledEmbeddings
from mofi_lightning.evaluation.measures.ranking import RankedPositives, ranked_positives

Measure = Callable[[RankedPositives], Tensor]


def average_precision(block: RankedPositives) -> Tensor:
    """Average precision `[B]`: the mean over the positives of (positives so far / rank); NaN without any."""
    return _precision(block).sum(dim=1) / block.valid.sum(dim=1)


def average_precision_at_r(block: RankedPositives) -> Tensor:
    """Average precision at R `[B]`, R the number of positives: (1/R) sum over i <= R of precision@i rel_i.

    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020: 1 only if the R best are the positives,
    and those beyond place R count nothing. NaN for a query without positives.
    """
    positives = block.valid.sum(dim=1)
    return _precision(block).where(block.rank <= positives[:, None], 0.0).sum(dim=1) / positives


def first_hit(block: RankedPositives) -> Tensor:
    """Rank `[B]` of the best positive, 1 for the best row, after negatives that tie; NaN without any."""
    negatives_before = (block.rank - block.found).double().where(block.valid, torch.inf)
    if not negatives_before.shape[1]:
        return negatives_before.new_full((len(negatives_before),), torch.nan)
    return (negatives_before.amin(dim=1) + 1).where(block.valid.any(dim=1), torch.nan)


def hits(first: Tensor, k: int) -> Tensor:
    """1 where the first hit `[Q]` is among the k best, else 0, NaN where undefined; its mean is recall@k."""
    return (first <= k).double().where(~first.isnan(), torch.nan)


def measure_retrieval(
    measures: Mapping[str, Measure],
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    exclude_self: bool = False,
) -> dict[str, Tensor]:
    """Several measures of each query in one pass over the scores.

    Args:
        measures: by name, such as `average_precision`, `average_precision_at_r`, `first_hit`.
        embeddings: queries `[Q, D]`; need not be normalised.
        labels: their classes `[Q]`, integer.
        index: what is searched `[N, D]`; None searches the queries themselves.
        index_labels: classes `[N]` of `index`.
        exclude_self: leave the query out of the rows it searches (only without `index`).

    Returns:
        For each measure `[Q]` float64; NaN for a query without positives.

    Raises:
        InputError: arguments that do not fit together, or an embedding that is not finite.
    """
    empty = torch.full((len(labels),), torch.nan, dtype=torch.float64, device=embeddings.device)
    values = {name: empty.clone() for name in measures}
    for block in ranked_positives(embeddings, labels, index, index_labels, exclude_self=exclude_self):
        for name, measure in measures.items():
            values[name][block.rows] = measure(block)
    return values


def retrieval_average_precision(
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    exclude_self: bool = False,
) -> Tensor:
    """Average precision of every query; see `measure_retrieval` for the arguments.

    The mean over the queries is the mAP of GPR1200; a random ranking of it scores 0.102 with the self-match,
    so the self-excluded value is the honest one.

    Returns:
        `[Q]` float64 in 0..1; NaN for a query without positives, which has no average precision.
    """
    found = measure_retrieval(
        {"": average_precision}, embeddings, labels, index, index_labels, exclude_self=exclude_self
    )
    return found[""]


def retrieval_hits(
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    k: Sequence[int] = (1, 5, 10),
    exclude_self: bool = False,
) -> dict[int, Tensor]:
    """Whether a positive is among the k best of each query; the mean over the queries is recall@k.

    A negative that ties with the best positive stands before it, so a constant embedding scores nothing.
    See `measure_retrieval` for the arguments.

    Returns:
        For each k `[Q]` float64: 1 hit, 0 miss, NaN for a query without positives.
    """
    first = measure_retrieval(
        {"": first_hit}, embeddings, labels, index, index_labels, exclude_self=exclude_self
    )[""]
    return {n: hits(first, n) for n in k}


def _precision(block: RankedPositives) -> Tensor:
    return (block.found.double() / block.rank.clamp(min=1)).where(block.valid, 0.0)


class RetrievalMAP(LabelledEmbeddings):
    """Mean average precision of retrieval within all rows seen, over all ranks; see `LabelledEmbeddings`.

    Args:
        exclude_self: leave each query out of the rows it searches.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(self, exclude_self: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exclude_self = exclude_self

    def measure(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows that have a positive."""
        return retrieval_average_precision(embeddings, labels, exclude_self=self.exclude_self).nanmean()


class MAPAtR(LabelledEmbeddings):
    """mAP@R of retrieval within all rows seen, self-matches left out; see `LabelledEmbeddings`."""

    def measure(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows that have a positive."""
        found = measure_retrieval({"": average_precision_at_r}, embeddings, labels, exclude_self=True)
        return found[""].nanmean()


class RecallAtK(LabelledEmbeddings):
    """Recall@k of retrieval within all rows seen, self-matches left out; see `LabelledEmbeddings`.

    Args:
        k: number of results to look at; 1 is the top-1 accuracy.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k

    def measure(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows that have a positive."""
        return retrieval_hits(embeddings, labels, k=(self.k,), exclude_self=True)[self.k].nanmean()
