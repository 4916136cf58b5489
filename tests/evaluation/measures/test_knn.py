import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from mofi_lightning.evaluation import knn
from mofi_lightning.evaluation.knn import KNNAccuracy, weighted_knn
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
    monkeypatch.setattr(knn, "BLOCK", block)
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
    with pytest.raises(InputError, match="at least one neighbour"):
        weighted_knn(torch.ones(1, 2), torch.zeros(1, dtype=torch.long))


def test_metric_equals_the_function_on_all_batches():
    embeddings, labels = _data(40, 0)
    metric = KNNAccuracy()
    metric.update(embeddings[:25], labels[:25])
    metric.update(embeddings[25:], labels[25:])
    metric.update(embeddings[:3], torch.full((3,), -1))
    assert float(metric.compute()) == max(weighted_knn(embeddings, labels).accuracy.values())
