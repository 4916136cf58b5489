import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mofi_lightning.evaluation.measures import linear_probe
from mofi_lightning.evaluation.measures.linear_classifier import class_recall
from mofi_lightning.evaluation.measures.linear_probe import (
    LAMBDAS,
    LinearProbeAccuracy,
    Trial,
    bracketed_steps,
    fit_linear_probe,
)
from mofi_lightning.types import InputError


def probe_data(rows: int, seed: int, width: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Features that are far from centred and of unequal scale, and overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(rows, width, generator=generator)
    return (centres[labels] + noise) * torch.logspace(1, -1, width) + 5, labels * 3


def _objective(weight: Tensor, bias: Tensor, features: Tensor, targets: Tensor, penalty: float) -> float:
    logits = features.double() @ weight.T + bias
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return float(losses + penalty / 2 * weight.square().sum())


@pytest.mark.parametrize("block", (40, 2**21))
@pytest.mark.parametrize(("rows", "width"), ((150, 6), (30, 50)))
@pytest.mark.parametrize("penalty", (0.01, 10.0))
def test_coefficients_and_objective_equal_scikit_learn(monkeypatch, rows, width, penalty, block):
    monkeypatch.setattr(linear_probe, "_BLOCK", block)
    features, labels = probe_data(rows, 1, width)
    fit = fit_linear_probe(features, labels, penalty=penalty)
    # centred, because its optimiser needs far more iterations otherwise; the weights are the same
    centred = features.double() - features.double().mean(dim=0)
    peer = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=20_000).fit(centred.numpy(), labels.numpy())
    weight = torch.from_numpy(peer.coef_)
    assert fit.converged and fit.classifier.classes.tolist() == peer.classes_.tolist()
    torch.testing.assert_close(fit.classifier.weight, weight, rtol=0, atol=2e-4 * float(weight.abs().max()))
    bias = torch.from_numpy(peer.intercept_) - weight @ features.double().mean(dim=0)
    targets = labels // 3
    ours = _objective(fit.classifier.weight, fit.classifier.bias, features, targets, penalty)
    assert ours == pytest.approx(_objective(weight, bias, features, targets, penalty), rel=1e-7)
    tests, truth = probe_data(300, 2, width)
    right = fit.classifier.hits(tests, truth)[1].numpy()
    guessed = peer.predict((tests.double() - features.double().mean(dim=0)).numpy())
    assert np.array_equal(right, guessed == truth.numpy())


def test_two_classes_equal_scikit_learn_too():
    features, labels = probe_data(60, 1, classes=2)
    fit = fit_linear_probe(features, labels, penalty=0.5)
    # its one row of weights has a softmax of two opposite rows, whose penalty is half of that of one row
    peer = LogisticRegression(C=1 / 0.25, tol=1e-9, max_iter=20_000)
    peer.fit(features.double().numpy() - 5, labels.numpy())
    weight = fit.classifier.weight[1] - fit.classifier.weight[0]
    torch.testing.assert_close(weight, torch.from_numpy(peer.coef_[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("penalty", (1e4, 1e6, 1e9))
def test_penalty_that_rules_still_tells_the_classes_apart(penalty):
    features, _ = probe_data(90, 1)
    fit = fit_linear_probe(features, torch.arange(90) % 3, penalty=penalty)
    peer = LogisticRegression(C=1 / penalty, tol=1e-14, max_iter=20_000)
    centred = (features.double() - features.double().mean(dim=0)).numpy()
    peer.fit(centred, np.arange(90) % 3)
    right = fit.classifier.hits(features, torch.arange(90) % 3)[1].numpy()
    assert np.array_equal(right, peer.predict(centred) == np.arange(90) % 3) and right.any()


def many_classes(classes: int = 150, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (3 * classes,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    features = centres[labels] + torch.randn(3 * classes, width, generator=generator)
    return 30 * torch.nn.functional.normalize(features), labels


@pytest.mark.parametrize("penalty", (1e-2, 1.0, 1e3, 1e5, 1e6))
def test_many_classes_end_at_the_minimum_whatever_lambda(monkeypatch, penalty):
    features, labels = many_classes()
    targets = labels.unique(return_inverse=True)[1]
    loose = fit_linear_probe(features, labels, penalty=penalty)
    monkeypatch.setattr(linear_probe, "_TOLERANCE", 1e-9)
    tight = fit_linear_probe(features, labels, penalty=penalty, max_iterations=20_000)
    got, want = (_objective(*fit.classifier[:2], features, targets, penalty) for fit in (loose, tight))
    assert loose.converged and got == pytest.approx(want, rel=1e-7)
    apart = (loose.classifier.weight - tight.classifier.weight).norm() / tight.classifier.weight.norm()
    assert apart < 1e-2


def test_trials_of_many_classes_tell_what_tight_fits_tell(monkeypatch):
    monkeypatch.setattr(linear_probe, "LAMBDAS", tuple(10.0 ** (4 + step / 16) for step in range(33)))
    features, labels = many_classes(300, 32)
    loose = fit_linear_probe(features, labels).trials
    monkeypatch.setattr(linear_probe, "_TOLERANCE_OF_SEARCH", 1e-5)
    tight = fit_linear_probe(features, labels).trials
    both = loose.keys() & tight.keys()
    assert len(both) >= 3
    for penalty in both:
        assert loose[penalty].accuracy == pytest.approx(tight[penalty].accuracy, abs=0.01)
        assert loose[penalty].cross_entropy == pytest.approx(tight[penalty].cross_entropy, rel=0.01)


def test_bar_counts_the_trials_and_the_last_fit(monkeypatch):
    features, labels = probe_data(60, 4)
    seen = []

    def bar(items, title, total):
        done = list(items)
        seen.append((title, total, len(done)))
        return done

    monkeypatch.setattr(linear_probe, "track", bar)
    trials = fit_linear_probe(features, labels, title="probe").trials
    fit_linear_probe(features, labels, penalty=1.0, title="one")
    # fewer where the best lambda is at an edge
    assert seen == [("probe", 16, len(trials) + 1), ("one", 1, 1)] and len(trials) <= 15


def test_lambdas_are_the_96_steps_of_clip():
    assert len(LAMBDAS) == 97 and LAMBDAS[0] == pytest.approx(1e-6) and LAMBDAS[-1] == pytest.approx(1e6)
    assert LAMBDAS[8] / LAMBDAS[0] == pytest.approx(10)


@pytest.mark.parametrize("peak", (0, 3, 37, 50, 95, 96))
def test_bracketed_search_finds_the_peak_of_a_curve_in_sixteen_fits(peak):
    trials: dict[int, Trial] = {}
    tried = []
    for step in bracketed_steps(trials, 97, 16):
        tried.append(step)
        trials[step] = Trial(-abs(step - peak), 0.0)
    assert tried[:7] == [96, 80, 64, 48, 32, 16, 0]
    assert max(trials, key=lambda step: trials[step].merit) == peak
    assert len(tried) == len(set(tried)) <= 15


def test_equal_accuracies_are_decided_by_cross_entropy():
    assert max(Trial(0.5, 2.0), Trial(0.5, 1.0), Trial(0.4, 0.1), key=lambda t: t.merit) == Trial(0.5, 1.0)


def test_chosen_lambda_is_that_of_the_best_accuracy_on_rows_held_out():
    features, labels = probe_data(120, 3)
    fit = fit_linear_probe(features, labels)
    assert fit.trials[fit.penalty].accuracy == max(trial.accuracy for trial in fit.trials.values())
    again = fit_linear_probe(features, labels, penalty=fit.penalty)
    torch.testing.assert_close(again.classifier.weight, fit.classifier.weight, rtol=1e-3, atol=1e-3)


def test_rows_in_another_order_give_the_same_fit():
    features, labels = probe_data(60, 4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    one, two = fit_linear_probe(features, labels), fit_linear_probe(features[order], labels[order])
    assert one.penalty == two.penalty
    assert torch.equal(one.classifier.weight, two.classifier.weight)


def test_classes_that_are_apart_are_separated_and_the_fit_ends():
    features = torch.eye(3).repeat(10, 1)
    labels = torch.arange(3).repeat(10)
    fit = fit_linear_probe(features, labels)
    assert fit.converged and fit.classifier.hits(features, labels)[1].min() == 1


def test_features_that_are_all_the_same_tell_nothing():
    fit = fit_linear_probe(torch.ones(12, 4), torch.arange(12) % 3)
    assert torch.equal(fit.classifier.weight, torch.zeros(3, 4, dtype=torch.float64))


def test_few_iterations_are_reported_as_not_converged():
    features, labels = probe_data(60, 4)
    assert not fit_linear_probe(features, labels, penalty=1e-6, max_iterations=2).converged


def test_class_without_rows_to_learn_from_is_never_a_hit():
    features, labels = probe_data(60, 4)
    fit = fit_linear_probe(features, labels, penalty=1.0)
    for unseen in (1, 99):
        hits = fit.classifier.hits(features[:4], torch.full((4,), unseen), k=(1, 5))
        assert hits[1].sum() == hits[5].sum() == 0


def test_class_recall_averages_classes_and_not_rows():
    hits, labels = torch.tensor([0.0, 1, 1, 0, 1]), torch.tensor([7, 2, 7, 2, 2])
    recall = class_recall(hits, labels)
    assert recall[:2].tolist() == [pytest.approx(1 / 2), pytest.approx(2 / 3)]
    assert recall[2:].isnan().all()


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    (
        (torch.full((4, 2), math.nan), torch.arange(4) % 2, "4 of 4 rows of features are not finite"),
        (torch.ones(3, 2), torch.zeros(3, dtype=torch.long), "two classes"),
        (torch.eye(3), torch.arange(3), "no class has two rows"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.long), "0 rows are of 0"),
    ),
)
def test_what_cannot_be_probed_is_named(features, labels, message):
    with pytest.raises(InputError, match=message):
        fit_linear_probe(features, labels)


def test_broken_features_to_test_on_are_refused():
    features, labels = probe_data(60, 4)
    fit = fit_linear_probe(features, labels, penalty=1.0)
    with pytest.raises(InputError, match="1 of 2 rows"):
        fit.classifier.hits(torch.stack([features[0], features[0] / 0]), labels[:2])


def _accuracy_of_a_rank(features: Tensor, labels: Tensor, fitting: Tensor) -> float:
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    metric = LinearProbeAccuracy()
    for part in torch.arange(rank, len(labels), world).split(20):
        metric.update(features[part], labels[part], fitting[part])
    return float(metric.compute())


def test_two_ranks_give_the_accuracy_of_one(pool):
    features, labels = probe_data(81, 6)
    fitting = torch.arange(81) % 3 > 0
    labels[80] = -1
    one = LinearProbeAccuracy()
    one.update(features, labels, fitting)
    fit = fit_linear_probe(features[:80][fitting[:80]], labels[:80][fitting[:80]])
    want = float(fit.classifier.hits(features[:80][~fitting[:80]], labels[:80][~fitting[:80]])[1].mean())
    assert float(one.compute()) == want
    assert pool(2, _accuracy_of_a_rank, features, labels, fitting) == pytest.approx([want] * 2, abs=1e-12)
