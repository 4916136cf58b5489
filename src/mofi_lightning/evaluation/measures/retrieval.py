"""Image retrieval after the protocol of GPR1200: mean average precision, recall@k, nearest neighbours.

Every image queries all images. Scores are fp32 dot products of L2-normalised embeddings; average precision
is summed in fp64. Ties are exact and independent of the order of rows: a positive's rank counts every row
that scores at least as much, so tied rows share the last rank of their group (as in scikit-learn's
`average_precision_score`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mofi_lightning.types import InputError

# elements of one block of scores: 32 MiB in fp32, so that memory does not grow with the number of queries
BLOCK = 2**23


class RankedPositives(NamedTuple):
    """Where the positives of a block of queries stand; P = most positives of a query in the block.

    Attributes:
        rows: the block's queries.
        rank: `[B, P]` int64, number of rows that score at least as much as the positive.
        found: `[B, P]` int64, number of positives that score at least as much.
        valid: `[B, P]` bool, False where a query has fewer than P positives.
    """

    rows: slice
    rank: Tensor
    found: Tensor
    valid: Tensor


def unit(embeddings: Tensor) -> Tensor:
    """L2-normalised fp32 copy of `embeddings` `[N, D]`.

    Raises:
        InputError: a row is not finite: no measure of it would mean anything.
    """
    broken = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().tolist()
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        raise InputError(
            f"{len(broken)} of {len(embeddings)} embeddings are not finite (rows {shown}); "
            "leave these images out or repair the model"
        )
    return F.normalize(embeddings.float(), dim=1)


def retrieval_average_precision(
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    exclude_self: bool = False,
) -> Tensor:
    """Average precision of every query: the mean over its positives of (positives so far / rank).

    The mean over the queries is the mAP of GPR1200; a random ranking of it scores 0.102 with the self-match,
    so the self-excluded value is the honest one.

    Args:
        embeddings: queries `[Q, D]`; need not be normalised.
        labels: their classes `[Q]`, integer.
        index: what is searched `[N, D]`; None searches the queries themselves.
        index_labels: classes `[N]` of `index`.
        exclude_self: leave the query out of the rows it searches (only without `index`).

    Returns:
        `[Q]` float64 in 0..1; NaN for a query without positives, which has no average precision.
    """
    values = torch.full((len(labels),), torch.nan, dtype=torch.float64, device=embeddings.device)
    for block in ranked_positives(embeddings, labels, index, index_labels, exclude_self=exclude_self):
        precision = (block.found.double() / block.rank.clamp(min=1)).where(block.valid, 0.0)
        values[block.rows] = precision.sum(dim=1) / block.valid.sum(dim=1)
    return values


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
    Arguments are those of `retrieval_average_precision`.

    Returns:
        For each k `[Q]` float64: 1 hit, 0 miss, NaN for a query without positives.
    """
    best = torch.full((len(labels),), torch.nan, dtype=torch.float64, device=embeddings.device)
    for block in ranked_positives(embeddings, labels, index, index_labels, exclude_self=exclude_self):
        negatives_before = (block.rank - block.found).double().where(block.valid, torch.inf)
        if negatives_before.shape[1]:
            first = negatives_before.amin(dim=1) + 1
            best[block.rows] = first.where(block.valid.any(dim=1), torch.nan)
    return {n: (best <= n).double().where(~best.isnan(), torch.nan) for n in k}


def ranked_positives(
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    exclude_self: bool = False,
) -> Iterator[RankedPositives]:
    """Ranks of all positives of all queries, one block of queries at a time (see the module's docstring)."""
    if (index is None) != (index_labels is None):
        raise InputError("`index` and `index_labels` go together")
    if exclude_self and index is not None:
        raise InputError("`exclude_self` needs the queries to be the index; leave `index` out")
    queries = unit(embeddings)
    index = queries if index is None else unit(index)
    index_labels = labels if index_labels is None else index_labels
    for name, rows, classes in (("queries", queries, labels), ("index", index, index_labels)):
        if len(rows) != len(classes):
            raise InputError(f"{len(rows)} embeddings but {len(classes)} labels of the {name}")

    # rows of the index sorted by class: the positives of a query are one run of `by_class`
    grouped, by_class = torch.sort(index_labels.to(index.device), stable=True)
    labels = labels.to(index.device)
    start = torch.searchsorted(grouped, labels)
    count = torch.searchsorted(grouped, labels, right=True) - start

    size = max(1, BLOCK // max(1, len(index)))
    for first in range(0, len(queries), size):
        block = slice(first, min(first + size, len(queries)))
        scores = queries[block] @ index.T
        column = torch.arange(int(count[block].max()), device=index.device)
        valid = column < count[block, None]
        positive = by_class[(start[block, None] + column).clamp(max=max(0, len(index) - 1))]
        if exclude_self:
            this = torch.arange(block.start, block.stop, device=index.device)
            scores[torch.arange(len(this), device=index.device), this] = -torch.inf
            valid = valid & (positive != this[:, None])
        score = scores.gather(1, positive).where(valid, torch.inf)
        rank = len(index) - torch.searchsorted(_sorted_rows(scores), score)
        ascending = score.sort(dim=1).values
        at_least = ascending.shape[1] - torch.searchsorted(ascending, score)
        found = at_least - (~valid).sum(dim=1, keepdim=True)
        yield RankedPositives(block, rank, found, valid)


def nearest_neighbours(embeddings: Tensor, queries: Sequence[int], k: int) -> Tensor:
    """Row numbers `[len(queries), k]` of the nearest other rows of `embeddings` `[N, D]`, nearest first."""
    vectors = unit(embeddings)
    rows = torch.as_tensor(queries, device=vectors.device)
    scores = vectors[rows] @ vectors.T
    scores[torch.arange(len(rows), device=vectors.device), rows] = -torch.inf
    return scores.topk(min(k, len(vectors) - 1), dim=1).indices


def _sorted_rows(scores: Tensor) -> Tensor:
    if scores.device.type == "cpu":
        # NumPy's vectorised sort needs no indices: several times faster than torch's on a CPU
        return torch.from_numpy(np.sort(scores.numpy(), axis=1))
    return scores.sort(dim=1).values


class RetrievalMAP(Metric):
    """Mean average precision of retrieval within all rows seen, over all ranks.

    Stores embeddings, never scores. Rows with a negative label have no class and are left out. A row that
    several ranks see counts several times: the loader must not pad its shards.

    Args:
        exclude_self: leave each query out of the rows it searches.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self, exclude_self: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exclude_self = exclude_self
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add rows: `embeddings` `[B, D]`, `labels` `[B]` integer."""
        labelled = labels >= 0
        self.embeddings.append(embeddings.detach()[labelled].float())
        self.labels.append(labels[labelled])

    def compute(self) -> Tensor:
        """0-D float64 in 0..1; NaN if no row has a positive."""
        values = retrieval_average_precision(
            dim_zero_cat(self.embeddings), dim_zero_cat(self.labels), exclude_self=self.exclude_self
        )
        return values.nanmean()
