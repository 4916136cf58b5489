"""The queries whose neighbours the report shows: some of all classes, and each model's worst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.measures.neighbours import nearest_neighbours

NEIGHBOURS = 10
_QUERIES, _WORST = 8, 4


@dataclass(frozen=True)
class Found:
    """What one model finds for one query; images are rows of the set.

    Attributes:
        query: the image that is searched with.
        neighbours: the nearest images, nearest first, ten at most.
        positives: how many images of the query's entity there are to find.
        nearest: the nearest of these.
        rank: where it stands among all images searched, 1 for the nearest.
    """

    query: int
    neighbours: list[int]
    positives: int
    nearest: int
    rank: int


def searched_rows(data: EvaluationSet, usable: Sequence[int]) -> list[int]:
    """Rows of the images that queries search: the usable ones but for the set's own queries."""
    queries = frozenset(data.queries if data.queries is not None else ())
    return [row for row in usable if row not in queries]


def choose_queries(data: EvaluationSet, usable: Sequence[int]) -> list[int]:
    """Eight images of entities spread over the whole set, one each, of entities with another image to find.

    Args:
        data: the set.
        usable: rows that have an embedding, ascending.
    """
    index = searched_rows(data, usable)
    findable = Counter(data.entities[row] for row in index)
    asked = set(data.queries if data.queries is not None else usable)
    inside = set(index)
    first: dict[str, int] = {}
    for row in usable:
        entity = data.entities[row]
        if row in asked and findable[entity] > (row in inside):
            first.setdefault(entity, row)
    rows = [first[entity] for entity in sorted(first)]
    number = min(len(rows), _QUERIES)
    return [rows[i * len(rows) // number] for i in range(number)]


def worst_queries(precision: Scores | None) -> dict[int, float]:
    """The four images with the lowest average precision, with it: the lowest and first row first.

    An image with an average precision of 1 is none of them.
    """
    if precision is None or precision.over != "images":
        return {}
    known = [(value, row) for row, value in enumerate(precision.values.tolist()) if value < 1]
    return {row: value for value, row in sorted(known)[:_WORST]}


def search(
    embeddings: Tensor, data: EvaluationSet, usable: Sequence[int], queries: Sequence[int]
) -> list[Found]:
    """What each query finds among the images searched (`searched_rows`), itself left out.

    A query with nothing to find is left out.

    Args:
        embeddings: float `[N, D]` of all images of the set.
        data: the set.
        usable: rows that have an embedding, ascending.
        queries: rows of usable images.
    """
    if not queries:
        return []
    place = {row: number for number, row in enumerate(usable)}
    near = nearest_neighbours(embeddings[list(usable)], [place[row] for row in queries], len(usable))
    index = frozenset(searched_rows(data, usable))
    found = []
    for query, order in zip(queries, near.tolist(), strict=True):
        rows = [usable[number] for number in order if usable[number] in index]
        right = [rank for rank, row in enumerate(rows) if data.entities[row] == data.entities[query]]
        if right:
            found.append(Found(query, rows[:NEIGHBOURS], len(right), rows[right[0]], right[0] + 1))
    return found
