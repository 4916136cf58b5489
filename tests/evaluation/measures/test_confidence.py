import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from mofi_lightning.evaluation.measures import confidence
from mofi_lightning.evaluation.measures.confidence import (
    bootstrap_interval,
    holm,
    mean_and_error,
    paired_test,
)
from mofi_lightning.types import InputError

NAN = math.nan


def _hits(rows: int, seed: int, share: float = 0.6) -> Tensor:
    return (torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < share).double()


def test_interval_of_independent_rows_agrees_with_scipy():
    values = _hits(80, 0)
    peer = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    ours = bootstrap_interval(values, torch.arange(80), resamples=20_000)
    assert ours == pytest.approx((peer.low, peer.high), abs=0.0125)


def test_interval_of_unequal_clusters_equals_naive_draws():
    values, clusters = _hits(150, 1), torch.arange(150) ** 2 // 500
    assert len(clusters.unique()) > 30
    drawn = np.random.default_rng(0)
    groups = [values[clusters == c].numpy() for c in clusters.unique()]
    means = [
        np.concatenate([groups[i] for i in drawn.integers(len(groups), size=len(groups))]).mean()
        for _ in range(8000)
    ]
    want = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values, clusters, level=0.9, resamples=8000) == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize("groups", (2, 3, 19, 29))
def test_interval_of_few_clusters_is_students(groups):
    means = torch.rand(groups, generator=torch.Generator().manual_seed(groups)).double()
    low, high = bootstrap_interval(means.repeat_interleave(4), torch.arange(groups).repeat_interleave(4))
    want = scipy.stats.t.interval(0.95, groups - 1, means.mean(), scipy.stats.sem(means.numpy()))
    assert (low, high) == pytest.approx(want)


def test_many_clusters_are_normal_and_agree_with_draws(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(1200, generator=generator), 0.99 * torch.rand(1200, generator=generator)
    normal = paired_test(a, b, torch.arange(1200))
    monkeypatch.setattr(confidence, "_MANY", 10**9)
    drawn = paired_test(a, b, torch.arange(1200))
    assert normal.p_value != drawn.p_value
    assert normal.p_value == pytest.approx(drawn.p_value, abs=0.02)
    assert normal.interval == pytest.approx(drawn.interval, abs=0.003)


def test_cluster_that_outweighs_many_is_drawn_and_not_taken_as_normal():
    values = torch.cat([torch.full((2000,), 0.5), torch.linspace(-0.1, 0.1, 2001)])
    clusters = torch.cat([torch.zeros(2000, dtype=torch.long), torch.arange(1, 2002)])
    # one sum of 1000 decides the total of each flip, which it never undoes
    assert paired_test(values, torch.zeros(4001), clusters).p_value > 0.4


def test_hundred_thousand_queries_take_less_than_a_second_of_processor():
    a, b = _hits(100_000, 0), _hits(100_000, 1)
    real = torch.rand(100_000, generator=torch.Generator().manual_seed(2)).double()
    start = time.process_time()
    paired_test(a, b, torch.arange(100_000))
    paired_test(real, b, torch.arange(100_000))
    assert time.process_time() - start < 2


def test_error_of_unequal_clusters_equals_a_naive_sum():
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(60, generator=generator, dtype=torch.float64)
    clusters = (torch.rand(60, generator=generator) ** 2 * 12).long()
    mean = sum(values.tolist()) / 60
    squares = 0.0
    for cluster in set(clusters.tolist()):
        of = [v for v, c in zip(values.tolist(), clusters.tolist(), strict=True) if c == cluster]
        squares += sum(v - mean for v in of) ** 2
    assert len(set(torch.bincount(clusters).tolist())) > 3
    assert mean_and_error(values, clusters) == pytest.approx((mean, math.sqrt(squares) / 60), abs=1e-12)


def test_copies_of_a_row_within_its_cluster_change_nothing():
    values, clusters = _hits(50, 2), torch.arange(50)
    once = bootstrap_interval(values, clusters)
    assert bootstrap_interval(values.repeat(5), clusters.repeat(5)) == pytest.approx(once)


def test_rows_of_nan_are_left_out():
    values, clusters = _hits(50, 2), torch.arange(50)
    with_nan = torch.cat([torch.tensor([NAN, NAN]), values]), torch.cat([torch.tensor([3, 99]), clusters])
    assert bootstrap_interval(*with_nan) == bootstrap_interval(values, clusters)
    assert mean_and_error(*with_nan) == mean_and_error(values, clusters)


def test_blocks_of_draws_change_nothing(monkeypatch):
    values, other, clusters = _hits(60, 3), _hits(60, 4, 0.4), torch.arange(60) // 2
    whole = bootstrap_interval(values, clusters), paired_test(values, other, clusters)
    monkeypatch.setattr(confidence, "_BLOCK", 1000)
    assert (bootstrap_interval(values, clusters), paired_test(values, other, clusters)) == whole


@pytest.mark.parametrize("values", (torch.tensor([0.0, 1, 1]), torch.full((3,), NAN), torch.ones(0)))
def test_fewer_than_two_clusters_give_no_certainty(values):
    clusters = torch.zeros(len(values), dtype=torch.long)
    assert all(math.isnan(end) for end in bootstrap_interval(values, clusters))
    assert math.isnan(mean_and_error(values, clusters)[1])
    test = paired_test(values, values - 1, clusters)
    assert math.isnan(test.p_value) and math.isnan(test.interval.low)


def test_few_clusters_count_all_sign_flips():
    # cluster sums of the difference: 3, 2, -1; |total| >= 4 for + + + (4), + + - (6), and their mirror images
    a = torch.tensor([2.0, 1, 2, 0, NAN])
    b = torch.tensor([0.0, 0, 0, 1, 1])
    test = paired_test(a, b, torch.tensor([0, 0, 1, 2, 3]))
    assert test.p_value == pytest.approx(4 / 8)
    assert (test.difference, test.queries, test.clusters) == (pytest.approx(1.0), 4, 3)


@pytest.mark.parametrize("seed", range(3))
def test_exact_p_value_equals_scipy(seed):
    difference = torch.randn(9, generator=torch.Generator().manual_seed(seed)).double() + 0.4
    peer = scipy.stats.permutation_test(
        (difference.numpy(),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    test = paired_test(difference, torch.zeros(9), torch.arange(9))
    assert test.p_value == pytest.approx(peer.pvalue)


def test_random_flips_agree_with_all_flips():
    difference = torch.randn(14, generator=torch.Generator().manual_seed(1)).double() + 0.5
    signs = np.array(list(itertools.product((-1, 1), repeat=14)))
    want = (np.abs(signs @ difference.numpy()) >= abs(float(difference.sum())) - 1e-9).mean()
    test = paired_test(difference, torch.zeros(14), torch.arange(14))
    assert test.p_value == pytest.approx(want, abs=0.01)


def test_same_values_are_no_difference():
    values = _hits(40, 5)
    test = paired_test(values, values, torch.arange(40))
    assert (test.difference, test.p_value, *test.interval) == (0, 1, 0, 0)


def test_clusters_make_the_test_less_sure_than_rows():
    a, b = _hits(20, 6, 0.8).repeat_interleave(10), _hits(20, 7, 0.3).repeat_interleave(10)
    by_row = paired_test(a, b, torch.arange(200))
    by_cluster = paired_test(a, b, torch.arange(20).repeat_interleave(10))
    assert by_row.difference == by_cluster.difference
    assert by_row.p_value < by_cluster.p_value


def test_swapped_models_swap_signs_only():
    a, b, clusters = _hits(60, 8), _hits(60, 9), torch.arange(60) // 3
    one, two = paired_test(a, b, clusters), paired_test(b, a, clusters)
    assert (two.difference, two.p_value) == (-one.difference, one.p_value)


def test_values_of_other_queries_are_refused():
    with pytest.raises(InputError, match="the same queries; there are 3, 4"):
        paired_test(torch.ones(3), torch.ones(4), torch.zeros(3, dtype=torch.long))


def test_holm_by_hand():
    # sorted 0.01 0.03 0.04 0.2: times 4, 3, 2, 1 = 0.04 0.09 0.08 0.2; never below the one before
    assert holm([0.04, 0.01, NAN, 0.2, 0.03]) == pytest.approx([0.09, 0.04, NAN, 0.2, 0.09], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_intervals_cover_the_mean_and_tests_reject_as_often_as_they_say():
    seed, trials = 0, 600
    generator = torch.Generator().manual_seed(seed)
    print(f"seed {seed}")
    clusters = torch.arange(60).repeat_interleave(5)
    covered = rejected = naive = 0
    for _ in range(trials):
        effects = torch.randn(60, 1, generator=generator).double()
        values = (effects + torch.randn(60, 5, generator=generator)).flatten()
        low, high = bootstrap_interval(values, clusters, resamples=1000)
        covered += low <= 0 <= high
        low, high = bootstrap_interval(values, torch.arange(300), resamples=1000)
        naive += low <= 0 <= high
        rejected += paired_test(values, torch.zeros(300), clusters).p_value <= 0.05
    assert 0.92 <= covered / trials <= 0.97
    assert naive / trials < 0.85
    assert 0.03 <= rejected / trials <= 0.075


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("groups", (2, 3, 5, 10, 20, 29, 30, 40))
def test_intervals_of_few_clusters_cover_the_mean_too(groups):
    seed, trials = groups, 2000
    generator = torch.Generator().manual_seed(seed)
    print(f"seed {seed}")
    clusters = torch.arange(groups).repeat_interleave(5)
    covered = 0
    for _ in range(trials):
        effects = torch.randn(groups, 1, generator=generator).double()
        values = (effects + torch.randn(groups, 5, generator=generator)).flatten()
        low, high = bootstrap_interval(values, clusters, resamples=1000)
        covered += low <= 0 <= high
    assert 0.92 <= covered / trials <= 0.97
