import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from tests.evaluation.measures.test_linear_probe import probe_data
from torch import Tensor

from mofi_lightning.evaluation.measures import ridge_probe
from mofi_lightning.evaluation.measures.ridge_probe import LAMBDAS, RidgeProbeAccuracy, fit_ridge_probe
from mofi_lightning.types import InputError


@pytest.mark.parametrize("penalty", (1e-3, 10.0))
@pytest.mark.parametrize(("rows", "width"), ((90, 6), (20, 50)))
def test_weights_and_guesses_equal_scikit_learn(rows, width, penalty):
    features, labels = probe_data(rows, 1, width)
    fit = fit_ridge_probe(features, labels, lambdas=(penalty,))
    targets = (labels[:, None] == labels.unique()).double()
    peer = Ridge(alpha=penalty).fit(features.double().numpy(), targets.numpy())
    torch.testing.assert_close(fit.classifier.weight, torch.from_numpy(peer.coef_), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fit.classifier.bias, torch.from_numpy(peer.intercept_), rtol=1e-6, atol=1e-8)
    tests, truth = probe_data(200, 2, width)
    classifier = RidgeClassifier(alpha=penalty).fit(features.double().numpy(), labels.numpy())
    guessed = classifier.predict(tests.double().numpy())
    assert np.array_equal(fit.classifier.hits(tests, truth)[1].numpy(), guessed == truth.numpy())


@pytest.mark.parametrize("block", (20, 2**21))
@pytest.mark.parametrize(("rows", "width"), ((24, 3), (12, 20)))
def test_leave_one_out_error_equals_that_of_fits_without_the_row(monkeypatch, rows, width, block):
    monkeypatch.setattr(ridge_probe, "_BLOCK", block)
    features, labels = probe_data(rows, 5, width)
    fit = fit_ridge_probe(features, labels, lambdas=(0.1, 10.0))
    targets = (labels[:, None] == labels.unique()).double().numpy()
    inputs = features.double().numpy()
    for penalty, error in fit.errors.items():
        total = 0.0
        for row in range(rows):
            kept = np.arange(rows) != row
            peer = Ridge(alpha=penalty).fit(inputs[kept], targets[kept])
            total += float(((peer.predict(inputs[row : row + 1])[0] - targets[row]) ** 2).sum())
        assert error == pytest.approx(total / rows, rel=1e-6)
    assert fit.errors[fit.penalty] == min(fit.errors.values())


def test_equal_errors_choose_the_highest_lambda():
    fit = fit_ridge_probe(torch.ones(12, 4), torch.arange(12) % 3)
    assert fit.penalty == max(LAMBDAS)


def test_rows_in_another_order_give_the_same_fit():
    features, labels = probe_data(60, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    one, two = fit_ridge_probe(features, labels), fit_ridge_probe(features[order], labels[order])
    assert torch.equal(one.classifier.weight, two.classifier.weight)


def test_interpolating_fit_has_no_vanishing_error():
    # with hardly a penalty every row decides its prediction; 0 / 0 must not look like a perfect score
    fit = fit_ridge_probe(torch.eye(6) * 1e6, torch.arange(6) % 2, lambdas=(1e-6, 1e12))
    assert all(math.isfinite(error) and error > 0 for error in fit.errors.values())


@pytest.mark.parametrize(
    ("features", "labels", "lambdas", "message"),
    (
        (torch.full((4, 2), math.inf), torch.arange(4) % 2, (1.0,), "4 of 4 rows of features are not finite"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.long), (1.0,), "two classes"),
        (torch.eye(4), torch.arange(4) % 2, (0.0,), "must be positive"),
        (torch.eye(4), torch.arange(4) % 2, (), "at least one"),
    ),
)
def test_what_cannot_be_probed_is_named(features, labels, lambdas, message):
    with pytest.raises(InputError, match=message):
        fit_ridge_probe(features, labels, lambdas=lambdas)


def _accuracy_of_a_rank(features: Tensor, labels: Tensor, fitting: Tensor) -> float:
    import torch.distributed as dist

    metric = RidgeProbeAccuracy()
    part = torch.arange(dist.get_rank(), len(labels), dist.get_world_size())
    metric.update(features[part], labels[part], fitting[part])
    return float(metric.compute())


def test_two_ranks_give_the_accuracy_of_one(pool):
    features, labels = probe_data(81, 6)
    fitting = torch.arange(81) % 3 > 0
    fit = fit_ridge_probe(features[fitting], labels[fitting])
    want = float(fit.classifier.hits(features[~fitting], labels[~fitting])[1].mean())
    assert pool(2, _accuracy_of_a_rank, features, labels, fitting) == pytest.approx([want] * 2, abs=1e-12)


def test_metric_without_rows_to_test_on_is_undefined_and_without_rows_to_learn_from_an_error():
    features, labels = probe_data(20, 6)
    metric = RidgeProbeAccuracy()
    metric.update(features, labels, torch.ones(20, dtype=torch.bool))
    assert metric.compute().isnan()
    metric.reset()
    metric.update(features, labels, torch.zeros(20, dtype=torch.bool))
    with pytest.raises(InputError, match="none of 20 rows"):
        metric.compute()
