import itertools

import pytest
import torch
from torch import Tensor

from mofi_lightning.distributed import gather_labels, rank, sample_classes, world_size
from mofi_lightning.testing.largest_tensor import TensorWatch

LABELS = torch.tensor([97, 3, 3, -1, 50, -1])
NONE = torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize("num_sampled", (1, 3, 10, 60, 99, 100, 1000))
def test_the_labels_come_first_and_then_distinct_others(num_sampled):
    ids, target = sample_classes(1, 0, LABELS, 100, num_sampled)
    assert len(ids) == len(ids.unique()) == min(max(num_sampled, 3), 100)
    assert ids[:3].tolist() == [3, 50, 97] and target.tolist() == [2, 0, 0, -1, 1, -1]
    assert ids.min() >= 0 and ids.max() < 100


@pytest.mark.parametrize("num_classes", (1, 2, 3, 5, 1023, 1024, 1025, 4097))
def test_any_number_of_classes_has_a_permutation(num_classes):
    for num_sampled in {1, num_classes // 2 + 1, num_classes}:
        ids, _ = sample_classes(1, 0, NONE, num_classes, num_sampled)
        assert len(ids.unique()) == num_sampled and ids.max() < num_classes
    assert sample_classes(1, 0, torch.zeros(2, dtype=torch.int64), num_classes, 1)[0].tolist() == [0]


def test_labels_beyond_the_number_are_all_taken():
    assert sample_classes(1, 0, torch.arange(20), 100, 5)[0].tolist() == list(range(20))


def test_draws_are_repeatable_and_differ_by_seed_and_number():
    first = sample_classes(1, 5, LABELS, 1000, 50)[0]
    assert torch.equal(first, sample_classes(1, 5, LABELS, 1000, 50)[0])
    assert not torch.equal(first, sample_classes(1, 6, LABELS, 1000, 50)[0])
    assert not torch.equal(first, sample_classes(2, 5, LABELS, 1000, 50)[0])


def test_a_larger_sample_only_adds_classes():
    large, small = (sample_classes(1, 0, LABELS, 1000, number)[0] for number in (900, 50))
    assert torch.equal(large[:50], small)


def _chi_square(counts: Tensor, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("num_classes", (40, 1500))
def test_other_classes_are_uniform(num_classes):
    draws, sampled = 600, num_classes // 3
    counts = torch.zeros(num_classes)
    for draw in range(draws):
        counts[sample_classes(1, draw, torch.tensor([0]), num_classes, sampled)[0]] += 1
    assert counts[0] == draws
    freedom = num_classes - 2
    p = (sampled - 1) / (num_classes - 1)
    # of a sample without replacement the counts vary by 1 - p
    chi2 = _chi_square(counts[1:], draws * p) / (1 - p)
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def test_orders_are_uniform_too():
    """Not only each class, but which classes come together and in which order."""
    orders = {order: number for number, order in enumerate(itertools.permutations(range(4)))}
    counts = torch.zeros(24)
    for draw in range(1200):
        counts[orders[tuple(sample_classes(1, draw, NONE, 4, 4)[0].tolist())]] += 1
    assert 5 < _chi_square(counts, 50) < 55  # 23 degrees of freedom: 99.9 % of the time


def test_classes_of_a_large_vocabulary_spread_evenly_without_a_tensor_of_its_size():
    with TensorWatch(rows=1) as watch:
        ids, _ = sample_classes(1, 0, LABELS, 2_000_000, 20_000)
    assert watch.largest.nbytes <= 8 * 25_000
    for cell in (ids // 20_000, ids % 100):
        assert 50 < _chi_square(torch.bincount(cell, minlength=100).float(), 200) < 160


def _classes(labels: Tensor) -> Tensor:
    own = labels.chunk(world_size())[rank()]
    return sample_classes(1, 0, gather_labels(own), 1000, 50)[0]


@pytest.mark.parametrize("world", (2, 3))
def test_every_rank_of_every_world_size_draws_the_same_classes(pool, world):
    expected = sample_classes(1, 0, LABELS, 1000, 50)[0]
    for ids in pool(world, _classes, LABELS):
        assert torch.equal(ids, expected)
