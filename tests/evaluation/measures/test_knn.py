import itertools
import math

import pytest
import torch
from benchmarks.objective_costs.live_memory import LiveMemory
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mofi_lightning.evaluation.measures import scores as scoring
from mofi_lightning.evaluation.measures.knn import weighted_knn
from mofi_lightning.types import InputError


def _data(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (rows,), generator=generator)
    return torch.randn(rows, 6, generator=generator) + torch.nn.functional.one_hot(labels, 6), labels


def _naive(query: Tensor, index: Tensor, labels: Tensor, k: int, temperature: float, skip: int | None) -> int:
    scores = [
        (math.fsum((query / query.norm() * row / row.norm()).tolist()), number)
        for number, row in enumerate(index.double())
        if number != skip
    ]
    votes = [0.0] * 5
    for score, number in sorted(scores, reverse=True)[:k]:
        votes[labels[number]] += math.exp((score - 1) / temperature)
    return votes.index(max(votes))


@pytest.mark.parametrize("block", [10, 2**23])
def test_leave_one_out_sweep_equals_naive_loops(monkeypatch, block):
    monkeypatch.setattr(scoring, "BLOCK", block)
    embeddings, labels = _data(40, 0)
    result = weighted_knn(embeddings, labels, k=(1, 7, 200), temperatures=(0.01, 0.07))
    for (k, temperature), accuracy in result.accuracy.items():
        guesses = [
            _naive(q.double(), embeddings, labels, k, temperature, i) for i, q in enumerate(embeddings)
        ]
        assert accuracy == pytest.approx(sum(g == t for g, t in zip(guesses, labels, strict=True)) / 40)
    assert (
        result.accuracy[result.best]
        == max(result.accuracy.values())
        == pytest.approx(float(result.correct.mean()))
    )


def test_separate_index_equals_scikit_learn():
    queries, labels = _data(50, 1)
    index, index_labels = _data(70, 2)
    result = weighted_knn(queries, labels, index, index_labels, k=(20,), temperatures=(0.07,))
    peer = KNeighborsClassifier(20, metric="cosine", weights=lambda d: torch.tensor(-d / 0.07).exp().numpy())
    peer.fit(index.numpy(), index_labels.numpy())
    assert result.accuracy[20, 0.07] == pytest.approx(peer.score(queries.numpy(), labels.numpy()))


def test_lowest_temperature_does_not_overflow():
    # exp(1 / 0.01) is infinite in fp32, and would make every vote NaN
    embeddings, labels = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    assert weighted_knn(embeddings, labels, k=(3,), temperatures=(0.01,)).accuracy[3, 0.01] == 1.0


def test_one_row_has_no_neighbour():
    with pytest.raises(InputError, match="a query and a neighbour"):
        weighted_knn(torch.ones(1, 2), torch.zeros(1, dtype=torch.long))


def _right(vectors: Tensor, labels: Tensor, k: int, temperature: float) -> list[bool]:
    """Whether the true class has the most votes however the rows that tie for the k-th place are drawn."""
    rows = torch.nn.functional.normalize(vectors.double(), dim=1)
    right = []
    for query, own in enumerate((rows @ rows.T).tolist()):
        others = [(round(score, 12), int(labels[row])) for row, score in enumerate(own) if row != query]
        last = sorted(others, reverse=True)[:k][-1][0]
        sure = [other for other in others if other[0] > last]
        tied = [other for other in others if other[0] == last]
        wins = []
        for drawn in itertools.combinations(tied, min(k, len(others)) - len(sure)):
            votes: dict[int, float] = {}
            for score, label in [*sure, *drawn]:
                votes[label] = votes.get(label, 0) + math.exp((score - 1) / temperature)
            mine = votes.pop(int(labels[query]), 0)
            wins.append(mine > max(votes.values(), default=0) * (1 + 1e-9))
        right.append(all(wins))
    return right


@pytest.mark.parametrize("block", [900, 2**23])
def test_copies_of_other_classes_never_favour_the_model_whatever_the_order_of_rows_or_classes(
    monkeypatch, block
):
    monkeypatch.setattr(scoring, "BLOCK", block)
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(15, 6, generator=generator).repeat(5, 1)
    labels = (torch.arange(75) % 15 % 4 + (torch.rand(75, generator=generator) < 0.2)) % 4
    want = {k: _right(vectors, labels, k, 0.07) for k in (1, 2, 4, 6, 7)}
    assert 0 < sum(want[1]) < sum(want[6]) < 75
    for order in (torch.arange(75), torch.randperm(75, generator=generator)):
        for renamed in (labels, 3 - labels, torch.tensor([2, 0, 3, 1])[labels]):
            for k, right in want.items():
                result = weighted_knn(vectors[order], renamed[order], k=(k,), temperatures=(0.07,))
                assert result.correct.bool().tolist() == [right[row] for row in order.tolist()]
            swept = weighted_knn(vectors[order], renamed[order], k=tuple(want), temperatures=(0.07,))
            for k, right in want.items():
                assert swept.accuracy[k, 0.07] == pytest.approx(sum(right) / 75, abs=1e-12)


def test_one_file_in_two_classes_scores_the_same_whichever_class_comes_first():
    # a query of class 0, a copy of it in each of two classes
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    for classes in ([0, 1, 2, 2], [1, 0, 2, 2], [2, 0, 1, 1]):
        assert weighted_knn(
            vectors[:1],
            torch.tensor(classes[:1]),
            vectors,
            torch.tensor(classes),
            k=(1, 2),
            temperatures=(0.1,),
        ).accuracy == {(1, 0.1): 0.0, (2, 0.1): 0.0}


def test_a_constant_model_is_right_only_where_all_vote_and_the_class_outnumbers_the_others():
    labels = torch.tensor([0] * 30 + [1] * 3)
    assert weighted_knn(torch.ones(33, 4), labels, k=(1, 3), temperatures=(0.07,)).correct.sum() == 0
    # 29 or 30 of class 0 and 3 of class 1 vote
    everyone = weighted_knn(torch.ones(33, 4), labels, k=(200,), temperatures=(0.07,))
    assert everyone.correct.tolist() == [1.0] * 30 + [0.0] * 3


def test_sweep_is_sorted_and_the_smallest_of_equally_good_settings_is_the_best():
    vectors, labels = torch.eye(3).repeat(2, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    result = weighted_knn(vectors, labels, k=(3, 1, 3), temperatures=(0.07, 0.01))
    assert list(result.accuracy) == [(1, 0.01), (1, 0.07), (3, 0.01), (3, 0.07)]
    assert result.best == (1, 0.01)


def test_votes_of_thousands_of_classes_take_no_memory_of_their_number():
    # one-hot votes of 600 queries over a million classes would be 5 GB
    vectors = torch.randn(600, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    labels = torch.arange(600).repeat(2) * 1600
    with LiveMemory() as memory:
        result = weighted_knn(vectors, labels, k=(20,), temperatures=(0.01,))
    assert result.accuracy[20, 0.01] > 0.9
    assert memory.peak < 50e6


@pytest.mark.parametrize("k, temperature", [((), 0.1), ((0,), 0.1), ((1,), 0.0)])
def test_settings_that_mean_nothing_are_named(k, temperature):
    with pytest.raises(InputError, match="above 0"):
        weighted_knn(torch.eye(3), torch.arange(3), k=k, temperatures=(temperature,))
