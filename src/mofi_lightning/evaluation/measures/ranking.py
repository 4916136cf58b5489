"""Where the positives of each query stand among all rows: what the measures of retrieval are made of."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.evaluation.measures import scores as scoring
from mofi_lightning.evaluation.measures.scores import (
    TIE,
    exact_pairs,
    exact_scores,
    fp32_scores,
    unit,
    window,
)
from mofi_lightning.types import InputError


class RankedPositives(NamedTuple):
    """Where the positives of a block of queries stand; P = most positives of a query in the block.

    Attributes:
        rows: the block's queries.
        rank: `[B, P]` int64, number of rows that score at least as much as the positive, itself included.
        found: `[B, P]` int64, number of positives that score at least as much, itself included.
        valid: `[B, P]` bool, False where a query has fewer than P positives.
    """

    rows: slice
    rank: Tensor
    found: Tensor
    valid: Tensor


class _Block(NamedTuple):
    """A block of queries and their positives."""

    queries: Tensor  # [B, D]
    labels: Tensor  # [B]
    positive: Tensor  # [B, P] rows of the index
    valid: Tensor  # [B, P]
    this: Tensor | None  # [B] rows of the index that are the queries themselves, where these are left out

    def at(self, query: Tensor) -> _Block:
        """These queries of the block only."""
        queries, labels, positive, valid = (x[query] for x in self[:4])
        return _Block(queries, labels, positive, valid, None if self.this is None else self.this[query])


def ranked_positives(
    embeddings: Tensor,
    labels: Tensor,
    index: Tensor | None = None,
    index_labels: Tensor | None = None,
    *,
    exclude_self: bool = False,
) -> Iterator[RankedPositives]:
    """Ranks of all positives of all queries, one block of queries at a time.

    Args:
        embeddings: queries `[Q, D]`; need not be normalised.
        labels: their classes `[Q]`, integer.
        index: what is searched `[N, D]`; None searches the queries themselves.
        index_labels: classes `[N]` of `index`.
        exclude_self: leave the query out of the rows it searches (only without `index`).

    Raises:
        InputError: arguments that do not fit together, or an embedding that is not finite.
    """
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

    labels, index_labels = labels.to(index.device), index_labels.to(index.device)
    # rows of the index sorted by class: the positives of a query are one run of `by_class`
    grouped, by_class = torch.sort(index_labels, stable=True)
    start = torch.searchsorted(grouped, labels)
    count = torch.searchsorted(grouped, labels, right=True) - start

    # beside the scores there are about eight numbers a positive
    most = int(count.max()) if len(count) else 0
    size = max(1, scoring.BLOCK // max(1, len(index) + 8 * most))
    for first in range(0, len(queries), size):
        block = slice(first, min(first + size, len(queries)))
        column = torch.arange(int(count[block].max()), device=index.device)
        valid = column < count[block, None]
        positive = by_class[(start[block, None] + column).clamp(max=max(0, len(index) - 1))]
        this = None
        if exclude_self:
            this = torch.arange(block.start, block.stop, device=index.device)
            valid = valid & (positive != this[:, None])
        rank, found = _ranks(
            _Block(queries[block], labels[block], positive, valid, this), index, index_labels
        )
        yield RankedPositives(block, rank, found, valid)


def _ranks(block: _Block, index: Tensor, index_labels: Tensor) -> tuple[Tensor, Tensor]:
    scores = _without_self(fp32_scores(block.queries, index), block.this)
    score = scores.gather(1, block.positive).where(block.valid, torch.inf)
    margin = window(index.shape[1])
    low, high = score - margin, score + margin
    ordered, positives = _sorted_rows(scores), score.sort(dim=1).values
    above = len(index) - torch.searchsorted(ordered, high, right=True)
    close = len(index) - torch.searchsorted(ordered, low) - above
    positives_above = score.shape[1] - torch.searchsorted(positives, high, right=True)
    # places that are not valid stand at infinity, above all positives; each positive is close to itself
    rank, found = above + 1, positives_above - (~block.valid).sum(dim=1, keepdim=True) + 1
    del ordered, positives
    unclear = block.valid & (close > 1)
    effort = close.where(unclear, 0).sum(dim=1)
    # many: all rows of this query in fp64 cost less than its close ones one at a time
    many = effort > max(64, len(index) // 64)
    few = (unclear & ~many[:, None]).nonzero()
    for part in scoring.row_blocks(len(few), len(index)):
        query, place = few[part].T
        pair, row = _between(scores, query, low[query, place], high[query, place])
        exact = exact_pairs(block.queries, index, query[pair], row)
        itself = block.positive[query, place]
        at_least = (exact >= exact[row == itself[pair]][pair] - TIE).long()
        positive = (index_labels[row] == block.labels[query[pair]]).long()
        rank[query, place] = above[query, place].scatter_add(0, pair, at_least)
        found[query, place] += torch.zeros_like(place).scatter_add(0, pair, at_least * positive) - 1
    costly = many.nonzero().flatten()
    for part in scoring.row_blocks(len(costly), len(index), scoring.BLOCK):
        query = costly[part]
        rank[query], found[query] = _exact_ranks(block.at(query), index)
    return rank, found


def _exact_ranks(block: _Block, index: Tensor) -> tuple[Tensor, Tensor]:
    scores = _without_self(exact_scores(block.queries, index), block.this)
    score = scores.gather(1, block.positive).where(block.valid, torch.inf)
    ordered, positives = _sorted_rows(scores), score.sort(dim=1).values
    rank = len(index) - torch.searchsorted(ordered, score - TIE)
    found = score.shape[1] - torch.searchsorted(positives, score - TIE)
    return rank, found - (~block.valid).sum(dim=1, keepdim=True)


def _between(scores: Tensor, query: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the bounds, and column, of all scores of row `query[i]` within `low[i]`..`high[i]`."""
    if scores.device.type == "cpu":
        # one row at a time stays in the cache
        rows, bounds = scores.numpy(), zip(query.tolist(), low.numpy(), high.numpy(), strict=True)
        columns = [((rows[q] >= least) & (rows[q] <= most)).nonzero()[0] for q, least, most in bounds]
        pair = np.repeat(np.arange(len(columns)), [len(found) for found in columns])
        return torch.from_numpy(pair), torch.from_numpy(np.concatenate(columns))
    own = scores[query]
    pair, row = ((own >= low[:, None]) & (own <= high[:, None])).nonzero().T
    return pair, row


def _without_self(scores: Tensor, this: Tensor | None) -> Tensor:
    if this is not None:
        scores[torch.arange(len(this), device=scores.device), this] = -torch.inf
    return scores


def _sorted_rows(scores: Tensor) -> Tensor:
    if scores.device.type == "cpu":
        # NumPy sorts several times faster than torch, which also makes indices; but it uses one thread
        rows = scores.numpy().copy()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(np.ndarray.sort, np.array_split(rows, torch.get_num_threads())))
        return torch.from_numpy(rows)
    return scores.sort(dim=1).values
