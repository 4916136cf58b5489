import math

import pytest
import torch
from tests.evaluation.evaluators.given import Given
from tests.evaluation.measures.test_linear_probe import probe_data
from torch import Tensor

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.images import EmbeddedImages
from mofi_lightning.evaluation.evaluators import LinearProbe, RidgeProbe
from mofi_lightning.evaluation.measures.linear_probe import fit_linear_probe
from mofi_lightning.evaluation.measures.ridge_probe import fit_ridge_probe
from mofi_lightning.types import InputError


def _set(labels: Tensor, first: int = 0, fit: EvaluationSet | None = None) -> EvaluationSet:
    rows = [str(first + i).encode() for i in range(len(labels))]
    keys = [f"image-{row.decode()}" for row in rows]
    return EvaluationSet("given", keys, rows, [f"Q{label}" for label in labels.tolist()], fit=fit)


def _split(seed: int = 1, classes: int = 6) -> tuple[EvaluationSet, Tensor, Tensor]:
    features, labels = probe_data(160, seed, classes=classes)
    return _set(labels[:60], 0, _set(labels[60:], 60)), features, labels


@pytest.mark.parametrize("probe", (LinearProbe(), RidgeProbe()))
def test_it_learns_from_the_training_split_and_is_tested_on_the_other(probe):
    data, features, labels = _split(2)
    found = probe(Given(features), data)
    fit = (fit_linear_probe if isinstance(probe, LinearProbe) else fit_ridge_probe)(
        features[60:], labels[60:]
    )
    hits = fit.classifier.hits(features[:60], labels[:60])
    acc1, acc5, recall = (found.scores[name] for name in probe.measures)
    assert torch.equal(acc1.values, hits[1]) and torch.equal(acc5.values, hits[5])
    assert 0.3 < acc1.mean < 1
    per_class = [float(hits[1][labels[:60] == label].mean()) for label in labels.unique()]
    assert recall.mean == pytest.approx(sum(per_class) / len(per_class))
    assert found.values[f"{probe.measures[0][:-5]}_lambda"] == fit.penalty
    assert not found.notes


@pytest.mark.parametrize("probe", (LinearProbe(), RidgeProbe()))
def test_without_training_split_a_fixed_half_of_each_class_is_tested(probe):
    labels = torch.arange(41) % 4
    features = torch.nn.functional.one_hot(labels, 6) + 0.1 * torch.randn(
        41, 6, generator=torch.Generator().manual_seed(0)
    )
    found = probe(Given(features), _set(labels))
    scores = found.scores[probe.measures[0]]
    tested = ~scores.values.isnan()
    assert torch.bincount(labels[tested]).tolist() == [5, 5, 5, 5]
    assert scores.mean == 1
    assert "no training split" in found.notes[0]
    other = probe(Given(torch.randn(41, 3, generator=torch.Generator().manual_seed(1))), _set(labels))
    assert torch.equal(~other.scores[probe.measures[0]].values.isnan(), tested)


@pytest.mark.parametrize("probe", (LinearProbe(), RidgeProbe()))
@pytest.mark.parametrize("classes", (4, 5))
def test_as_many_results_as_classes_are_left_out(probe, classes):
    data, features, _ = _split(classes=classes)
    found = probe(Given(features), data)
    assert set(found.scores) == {probe.measures[0], probe.measures[2]}
    prefix = probe.measures[0][:-1]
    assert found.notes == (f"{prefix}@k are left out at k = 5: there are {classes} classes to learn",)


@pytest.mark.parametrize("probe", (LinearProbe(), RidgeProbe()))
@pytest.mark.parametrize("scale", (0, 1e-20))
def test_features_too_faint_to_count_are_noted(probe, scale):
    data, features, _ = _split()
    assert any(
        "so that no lambda tried lets them count" in n for n in probe(Given(features * scale), data).notes
    )
    assert not any("lets them count" in n for n in probe(Given(features * 1e-3), data).notes)


def test_class_with_one_image_is_named_and_not_tested():
    labels = torch.tensor([0] * 8 + [1] * 8 + [2])
    features = torch.nn.functional.one_hot(labels, 3).float()
    found = RidgeProbe()(Given(features), _set(labels))
    assert found.scores["ridge_acc1"].values[-1].isnan()
    assert "1 classes have one image" in found.notes[1]


def test_classes_without_training_image_are_named_and_count_as_wrong():
    labels = torch.tensor([0, 1, 2, 2] + [0, 1] * 8)
    features = torch.nn.functional.one_hot(labels, 3).float()
    data = _set(labels[:4], 0, _set(labels[4:], 4))
    for probe in (LinearProbe(), RidgeProbe()):
        found = probe(Given(features), data)
        assert found.scores[probe.measures[0]].values.tolist() == [1, 1, 0, 0]
        assert found.scores[probe.measures[2]].mean == pytest.approx(2 / 3)
        assert any("no image to learn from (Q2); their 2 images count as wrong" in n for n in found.notes)


@pytest.mark.parametrize("probe", (LinearProbe(), RidgeProbe()))
@pytest.mark.parametrize(
    ("labels", "reason"),
    (
        (torch.arange(6), "no class has two images, one to learn from and one to test on"),
        (torch.zeros(6, dtype=torch.long), "needs two classes"),
    ),
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(probe, labels, reason):
    found = probe(Given(torch.eye(6)), _set(labels))
    assert reason in found.skipped and not found.scores


def test_linear_probe_without_images_to_choose_lambda_on_is_skipped_and_ridge_is_not():
    data = _set(torch.arange(6) // 2)
    assert "to choose lambda on" in LinearProbe()(Given(torch.eye(6)), data).skipped
    assert RidgeProbe()(Given(torch.eye(6)), data).scores


def test_undecodable_images_are_neither_learned_nor_tested():
    data, features, labels = _split()
    broken = features.clone()
    broken[[3, 70]] = math.nan
    found = RidgeProbe()(Given(broken), data)
    kept = torch.arange(60, 160) != 70
    fit = fit_ridge_probe(features[60:][kept], labels[60:][kept])
    want = fit.classifier.hits(features[:60], labels[:60])[1]
    want[3] = math.nan
    torch.testing.assert_close(found.scores["ridge_acc1"].values, want, equal_nan=True)


class _BrokenFeatures(Given):
    def embed_images(self, images):
        found = super().embed_images(images)
        features = found.features.clone()
        features[2] = math.nan
        return EmbeddedImages(found.embeddings, features, found.failed)


@pytest.mark.parametrize("probe", (LinearProbe(), RidgeProbe()))
def test_features_that_are_not_finite_are_refused_by_name(probe):
    data, features, _ = _split()
    with pytest.raises(InputError, match=r"1 of 60 features .*image-2"):
        probe(_BrokenFeatures(features), data)


def test_iterations_that_end_too_early_are_noted():
    data, features, _ = _split()
    assert any("stopped at 1 iterations" in note for note in LinearProbe(1)(Given(features), data).notes)
