import math

import pytest
import torch

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.report.queries import choose_queries, search, worst_queries


def _set(entities: list[str], queries: list[int] | None = None) -> EvaluationSet:
    keys = [f"k{row}" for row in range(len(entities))]
    return EvaluationSet("set", keys, [b""] * len(entities), entities, queries=queries)


def _naive(
    embeddings: torch.Tensor, entities: list[str], query: int, index: list[int]
) -> tuple[list[int], float]:
    """Ranking by cosine similarity in fp64, and average precision by its definition."""
    vectors = torch.nn.functional.normalize(embeddings.double(), dim=1)
    order = sorted(
        (row for row in index if row != query), key=lambda row: -float(vectors[query] @ vectors[row])
    )
    hits, precisions = 0, []
    for place, row in enumerate(order, start=1):
        if entities[row] == entities[query]:
            hits += 1
            precisions.append(hits / place)
    return order, sum(precisions) / len(precisions) if precisions else math.nan


def test_queries_are_of_different_entities_with_another_image_to_find():
    entities = [f"e{n}" for n in range(20) for _ in range(2)] + ["alone"]
    chosen = choose_queries(_set(entities), range(41))
    assert len(chosen) == len({entities[row] for row in chosen}) == 8
    assert "alone" not in {entities[row] for row in chosen}
    assert choose_queries(_set(["x", "y"]), [0, 1]) == []
    # the other image could not be decoded
    assert choose_queries(_set(["x", "x", "y", "y"]), [0, 2, 3]) == [2]


def test_queries_are_the_sets_own_where_it_names_any():
    data = _set(["x", "x", "y", "y", "z", "x"], queries=[1, 2, 4, 5])
    assert choose_queries(data, range(6)) == [1, 2]


@pytest.mark.parametrize("queries", [None, [0, 5, 10, 15, 20, 25]])
def test_worst_queries_and_what_they_find_are_those_of_a_naive_ranking(queries):
    torch.manual_seed(0)
    entities = [f"e{row % 7}" for row in range(40)]
    embeddings = torch.randn(40, 6)
    data, usable = _set(entities, queries), [row for row in range(40) if row not in (3, 9)]
    index = [row for row in usable if row not in (queries or [])]
    naive = {row: _naive(embeddings, entities, row, index) for row in queries or usable}
    precision = torch.full((40,), math.nan, dtype=torch.float64)
    for row, (_, value) in naive.items():
        precision[row] = value

    worst = worst_queries(Scores(precision, torch.zeros(40, dtype=torch.long)))

    assert list(worst) == sorted(naive, key=lambda row: (naive[row][1], row))[:4]
    for found in search(embeddings, data, usable, list(worst)):
        order = naive[found.query][0]
        right = [row for row in order if entities[row] == entities[found.query]]
        assert found.neighbours == order[:10]
        assert (found.positives, found.nearest) == (len(right), right[0])
        assert order[found.rank - 1] == right[0]
        assert worst[found.query] == naive[found.query][1]


def test_equal_precisions_give_the_first_rows_and_perfect_ones_are_not_bad():
    values = torch.tensor([1.0, 0.5, math.nan, 0.25, 0.5, 0.5, 0.5, 1.0], dtype=torch.float64)
    clusters = torch.zeros(8, dtype=torch.long)
    assert list(worst_queries(Scores(values, clusters))) == [3, 1, 4, 5]
    assert worst_queries(Scores(torch.ones(3, dtype=torch.float64), clusters[:3])) == {}
    assert worst_queries(None) == {}
