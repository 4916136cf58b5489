from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection

from mofi_lightning.evaluation.datasets.hierarchy import read_hierarchy
from mofi_lightning.evaluation.measures import scores
from mofi_lightning.evaluation.measures.hierarchical_precision import (
    HierarchicalPrecision,
    hierarchical_precision,
)
from mofi_lightning.evaluation.measures.label_hierarchy import LabelHierarchy
from mofi_lightning.evaluation.measures.zero_shot import zero_shot_rank
from mofi_lightning.types import InputError

ANIMALS = Path(__file__).parents[1] / "data" / "wordnet_animals"
PETS = {
    "cat": ["pet"],
    "dog": ["pet"],
    "wolf": ["wild"],
    "fox": ["wild"],
    "pet": ["animal"],
    "wild": ["animal"],
}
FOUR = ["cat", "dog", "wolf", "fox"]


def _data(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, 12, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return weights[labels] + torch.randn(rows, 12, generator=generator), labels, weights


def _wordnet() -> LabelHierarchy:
    return LabelHierarchy(read_hierarchy(ANIMALS), (ANIMALS / "imagenet_labels.txt").read_text().split())


@pytest.mark.parametrize("block", [500, 2**23])
def test_equals_the_papers_definition_on_wordnet(block, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", block)
    hierarchy = _wordnet()
    images, labels, weights = _data(60, 137)
    got = hierarchical_precision(images, labels, weights, hierarchy)
    order = (F.normalize(images, dim=1) @ F.normalize(weights, dim=1).T).argsort(dim=1, descending=True)
    assert list(got) == [2, 5, 10, 20]
    for k, values in got.items():
        want = []
        for label, best in zip(labels.tolist(), order.tolist(), strict=True):
            correct = hierarchy.correct_set(hierarchy.labels[label], k)
            want.append(sum(hierarchy.labels[row] in correct for row in best[:k]) / k)
        assert values.tolist() == want
        assert 0.05 < float(values.mean()) < 0.9


def test_at_one_it_is_the_accuracy():
    images, labels, weights = _data(60, 137)
    got = hierarchical_precision(images, labels, weights, _wordnet(), (1,))[1]
    assert torch.equal(got, (zero_shot_rank(images, labels, weights) <= 1).double())


def test_near_mistakes_count_and_far_ones_do_not():
    # an image of a cat whose second guess is the dog, and one whose second guess is the wolf
    weights = torch.eye(4)
    images = torch.tensor([[4.0, 3, 1, 2], [4, 1, 3, 2]])
    got = hierarchical_precision(images, torch.tensor([0, 0]), weights, LabelHierarchy(PETS, FOUR), (1, 2, 3))
    assert got[1].tolist() == [1, 1]
    assert got[2].tolist() == [1, 0.5]
    # three labels: the next ring holds both wild ones
    assert got[3].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("similar", "want"),
    [
        ([1.0, 1, 1, 1], 0.0),  # a constant model: the wild ones come first
        ([2.0, 1, 1, 0], 0.5),  # the wolf before the dog
        ([1.0, 1, 1, 0], 0.5),  # one wild, then one of the pets
        ([2.0, 2, 1, 1], 1.0),
    ],
)
def test_wrong_labels_take_tied_places_first(similar, want):
    hierarchy = LabelHierarchy(PETS, FOUR)
    got = hierarchical_precision(torch.tensor([similar]), torch.tensor([0]), torch.eye(4), hierarchy, (2,))
    assert got[2].tolist() == [want]


def test_a_k_that_is_given_twice_is_measured_once():
    images, labels, weights = _data(20, 137)
    once, twice = (hierarchical_precision(images, labels, weights, _wordnet(), k) for k in ((2,), (2, 2)))
    assert list(twice) == [2] and torch.equal(once[2], twice[2])


@pytest.mark.parametrize("start", ["update", "forward"])
def test_metrics_of_other_settings_stay_apart_in_a_collection(start):
    # the first batch is unlabelled, so that all counts are equal then
    images, labels, weights = _data(60, 4)
    other = {**PETS, "cat": ["wild"], "wolf": ["pet"]}
    settings = {
        "a": (weights, LabelHierarchy(PETS, FOUR), 2),
        "b": (weights.flip(0), LabelHierarchy(PETS, FOUR), 2),
        "c": (weights, LabelHierarchy(other, FOUR), 2),
        "d": (weights, LabelHierarchy(PETS, FOUR[::-1]), 2),
        "e": (weights, LabelHierarchy(PETS, FOUR), 3),
    }
    metrics = MetricCollection({name: HierarchicalPrecision(*given) for name, given in settings.items()})
    for batch, classes in ((images[:5], -torch.ones(5).long()), (images, labels)):
        getattr(metrics, start)(batch, classes)
    for name, (vectors, hierarchy, k) in settings.items():
        want = hierarchical_precision(images, labels, vectors, hierarchy, (k,))[k]
        assert float(metrics.compute()[name]) == pytest.approx(float(want.nanmean()), abs=1e-12)


def test_a_label_connected_to_too_few_has_no_value():
    hierarchy = LabelHierarchy({**PETS, "stone": ["mineral"]}, [*FOUR, "stone"])
    got = hierarchical_precision(torch.eye(5), torch.arange(5), torch.eye(5), hierarchy, (1, 2))
    assert got[1].tolist() == [1] * 5
    assert got[2].isnan().tolist() == [False] * 4 + [True]
    metric = HierarchicalPrecision(torch.eye(5), hierarchy, 2)
    metric.update(torch.eye(5), torch.arange(5))
    assert float(metric.compute()) == pytest.approx(float(got[2].nanmean()))


def test_unlabelled_rows_are_left_out_of_the_metric_and_no_rows_give_nan():
    metric = HierarchicalPrecision(torch.eye(4), LabelHierarchy(PETS, FOUR), 2)
    metric.update(torch.eye(4), torch.full((4,), -1))
    assert metric.compute().isnan()
    metric.update(torch.tensor([[4.0, 1, 3, 2], [4, 3, 2, 1]]), torch.tensor([0, -1]))
    assert float(metric.compute()) == 0.5
    none = hierarchical_precision(
        torch.zeros(0, 4), torch.zeros(0).long(), torch.eye(4), metric.hierarchy, (2,)
    )
    assert none[2].shape == (0,)


@pytest.mark.parametrize("k", [0, 5])
def test_a_k_that_there_are_not_is_named(k):
    with pytest.raises(InputError, match=f"precision@{k} of 4 candidates is not defined"):
        hierarchical_precision(
            torch.eye(4), torch.arange(4), torch.eye(4), LabelHierarchy(PETS, FOUR), (2, k)
        )


def test_a_hierarchy_of_other_labels_is_refused():
    with pytest.raises(InputError, match="of 4 labels, but there are 3 candidates"):
        hierarchical_precision(torch.eye(3), torch.arange(3), torch.eye(3), LabelHierarchy(PETS, FOUR), (2,))


def _measure_own_rows() -> float:
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    images, labels, weights = _data(61, 137)
    metric = HierarchicalPrecision(weights, _wordnet(), 5)
    metric.update(images[rank::world], labels[rank::world])
    return float(metric.compute())


def test_two_ranks_give_one_ranks_number(pool):
    (one,) = pool(1, _measure_own_rows)
    images, labels, weights = _data(61, 137)
    assert one == pytest.approx(float(hierarchical_precision(images, labels, weights, _wordnet())[5].mean()))
    assert pool(2, _measure_own_rows) == [pytest.approx(one, abs=1e-9)] * 2
