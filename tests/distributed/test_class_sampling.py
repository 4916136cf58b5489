import pytest
import torch
from torch import Tensor

from mofi_lightning.distributed import gather_labels, rank, sample_classes, world_size

LABELS = torch.tensor([3, 3, 97, -1, 50, -1])


@pytest.mark.parametrize("num_sampled", (1, 3, 10, 60, 99, 100, 1000))
def test_sampled_classes_are_distinct_ascending_and_contain_every_label(num_sampled):
    ids = sample_classes(1, 0, LABELS, 100, num_sampled)
    assert len(ids) == min(max(num_sampled, 3), 100)
    assert torch.equal(ids, ids.unique())
    assert ids.min() >= 0 and ids.max() < 100
    assert torch.isin(torch.tensor([3, 50, 97]), ids).all()


def test_draws_are_repeatable_and_differ_by_seed_and_number():
    first = sample_classes(1, 5, LABELS, 1000, 50)
    assert torch.equal(first, sample_classes(1, 5, LABELS, 1000, 50))
    assert not torch.equal(first, sample_classes(1, 6, LABELS, 1000, 50))
    assert not torch.equal(first, sample_classes(2, 5, LABELS, 1000, 50))


def test_other_classes_are_uniform():
    labels = torch.tensor([0])
    counts = torch.zeros(40)
    for draw in range(4000):
        counts[sample_classes(1, draw, labels, 40, 14)] += 1
    assert counts[0] == 4000
    p = 13 / 39
    chi2 = ((counts[1:] - 4000 * p) ** 2 / (4000 * p * (1 - p))).sum()
    assert 15 < chi2 < 70  # 38 degrees of freedom: 99.9 % of the time


def _classes(labels: Tensor) -> Tensor:
    own = labels.chunk(world_size())[rank()]
    return sample_classes(1, 0, gather_labels(own), 1000, 50)


@pytest.mark.parametrize("world", (2, 3))
def test_every_rank_of_every_world_size_draws_the_same_classes(pool, world):
    expected = sample_classes(1, 0, LABELS, 1000, 50)
    for ids in pool(world, _classes, LABELS):
        assert torch.equal(ids, expected)
