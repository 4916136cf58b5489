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


def _exact(vectors: Tensor, labels: Tensor, k: int, temperature: float) -> list[int]:
    """Votes in fp64 of the k nearest others by score, to 12 places, then class; the lowest of equal votes."""
    rows = torch.nn.functional.normalize(vectors.double(), dim=1)
    guesses = []
    for query, own in enumerate((rows @ rows.T).tolist()):
        ranked = sorted((-round(s, 12), int(labels[row])) for row, s in enumerate(own) if row != query)[:k]
        votes: dict[int, float] = {}
        for score, label in ranked:
            votes[label] = votes.get(label, 0) + math.exp((-score - 1) / temperature)
        most = max(votes.values())
        guesses.append(min(label for label, vote in votes.items() if vote > most * (1 - 1e-9)))
    return guesses


@pytest.mark.parametrize("block", [900, 2**23])
def test_copies_of_other_classes_vote_in_the_order_of_classes_whatever_the_order_of_rows(monkeypatch, block):
    monkeypatch.setattr(scoring, "BLOCK", block)
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(30, 6, generator=generator).repeat(4, 1)
    labels = torch.randint(9, (120,), generator=generator)
    for order in (torch.arange(120), torch.randperm(120, generator=generator)):
        result = weighted_knn(vectors[order], labels[order], k=(1, 2, 5), temperatures=(0.07,))
        for k in (1, 2, 5):
            right = torch.tensor(_exact(vectors, labels, k, 0.07)) == labels
            assert result.accuracy[k, 0.07] == pytest.approx(float(right.double().mean()), abs=1e-12)


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
