"""Nearest neighbours, exact and in a well defined order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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

# rows of the index that are searched at a time
TILE = 2**14
# candidates beyond the k best: near-ties of the last one that are put in order without a second search
SPARE = 8


class Neighbours(NamedTuple):
    """The k nearest rows of each query, nearest first; of rows that tie, the lower stands first.

    Attributes:
        scores: `[Q, k]` float64 cosines; rows that tie have the highest of theirs, to the last bit.
        rows: `[Q, k]` int64 rows of the index.
    """

    scores: Tensor
    rows: Tensor


def top_k(queries: Tensor, index: Tensor, k: int, *, left_out: Tensor | None = None) -> Neighbours:
    """The k rows of `index` with the highest cosine for each query, as FAISS' exact IndexFlatIP finds them.

    Memory grows with neither the queries nor the index, beyond the results and normalised copies of what is
    not normalised fp32 yet (`unit`).

    Args:
        queries: `[Q, D]`.
        index: `[N, D]`.
        k: number of neighbours; of an index of fewer rows all are returned.
        left_out: a row of the index for each query that is not searched `[Q]`: the query itself.

    Raises:
        InputError: an embedding is not finite, or there is no row to search.
    """
    wanted = min(k, len(index) - (left_out is not None))
    if wanted < 1:
        raise InputError(
            f"a search needs k >= 1 and a row to find; k is {k}, the index has {len(index)} rows"
        )
    queries, index = unit(queries), unit(index)
    result = Neighbours(
        torch.empty(len(queries), wanted, dtype=torch.float64, device=index.device),
        torch.empty(len(queries), wanted, dtype=torch.long, device=index.device),
    )
    for rows in scoring.row_blocks(len(queries), min(TILE, len(index)) + 8 * wanted, scoring.BLOCK):
        found = _search(queries[rows], index, wanted, None if left_out is None else left_out[rows])
        for whole, part in zip(result, found, strict=True):
            whole[rows] = part
    return result


def nearest_neighbours(embeddings: Tensor, queries: Sequence[int], k: int) -> Tensor:
    """Row numbers `[len(queries), k]` of the nearest other rows of `embeddings` `[N, D]`, nearest first."""
    rows = torch.as_tensor(queries, dtype=torch.long, device=embeddings.device)
    vectors = unit(embeddings)
    return top_k(vectors[rows], vectors, k, left_out=rows).rows


def _search(queries: Tensor, index: Tensor, k: int, left_out: Tensor | None) -> Neighbours:
    searched = len(index) - (left_out is not None)
    # one by one, the pairs of a good part of the index cost more than all of them in one product
    if 4 * (k + SPARE) >= searched:
        return _search_exactly(queries, index, k, left_out)
    scores, rows = _candidates(queries, index, k + SPARE, left_out)
    query = torch.arange(len(queries), device=index.device)[:, None].expand_as(rows)
    exact = exact_pairs(queries, index, query.flatten(), rows.flatten()).view_as(scores)
    result = _first(exact, rows, k)
    # rows that were not taken may still tie with the last of the k
    again = (scores[:, -1] >= scores[:, k - 1] - window(index.shape[1])).nonzero().flatten()
    if len(again):
        found = _search_exactly(queries[again], index, k, None if left_out is None else left_out[again])
        result.scores[again], result.rows[again] = found
    return result


def _search_exactly(queries: Tensor, index: Tensor, k: int, left_out: Tensor | None) -> Neighbours:
    found = []
    every_row = torch.arange(len(index), device=index.device)
    for part in scoring.row_blocks(len(queries), len(index)):
        scores = exact_scores(queries[part], index)
        if left_out is not None:
            scores.scatter_(1, left_out[part, None], -torch.inf)
        found.append(_first(scores, every_row.expand_as(scores), k))
    return Neighbours(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _candidates(queries: Tensor, index: Tensor, k: int, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best by fp32 scores `[B, k]`, with their rows, a tile of the index at a time."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=index.device)
    for first in range(0, len(index), TILE):
        scores = fp32_scores(queries, index[first : first + TILE])
        if left_out is not None:
            column = left_out - first
            here = ((column >= 0) & (column < scores.shape[1])).nonzero().flatten()
            scores[here, column[here]] = -torch.inf
        near = scores.topk(min(k, scores.shape[1]), dim=1)
        best, rows = torch.cat([best, near.values], dim=1), torch.cat([rows, near.indices + first], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, kept)
    return best, rows


def _first(scores: Tensor, rows: Tensor, k: int) -> Neighbours:
    """The k best of each query, by group of scores and then by row.

    A group ends where the next score is more than `TIE` below: a grid of that width would split copies whose
    scores lie on both sides of one of its lines.
    """
    values, order = scores.sort(dim=1, descending=True)
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[:, 1:] = values[:, :-1] - values[:, 1:] > TIE
    place = torch.arange(values.shape[1], device=values.device).expand_as(values)
    group = place.where(starts, 0).cummax(dim=1).values
    # both at once: groups are already in order, and rows are fewer than `stride`
    stride = int(rows.max()) + 1
    in_order = (group * stride + rows.gather(1, order)).sort(dim=1).values % stride
    return Neighbours(values.gather(1, group)[:, :k], in_order[:, :k])
