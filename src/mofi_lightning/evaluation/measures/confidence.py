"""How sure a mean is: standard errors, confidence intervals and paired tests that know clusters.

Images of one entity are not independent, so whole clusters are drawn, or change sign, and deviations are
summed within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.types import InputError

RESAMPLES = 2000
LEVEL = 0.95
PERMUTATIONS = 9999
# up to as many clusters all 2^12 sign flips are tried
_EXACT = 12
# with fewer clusters percentiles of a bootstrap are too narrow: "95 %" cover 51 % with 2 and 90 % with 10
_FEW = 30
# with more clusters that differ, none of which has more than this share of the variance, sums are normal
_MANY = 1000
_SHARE = 0.01
# elements of one block of draws
_BLOCK = 2**21


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """Two models on the same queries.

    Attributes:
        difference: mean of the first minus mean of the second, over the queries that both define.
        interval: 95 % interval of it, as of `bootstrap_interval`; NaN with fewer than two clusters.
        p_value: of a two-sided sign-flip permutation test over clusters; NaN likewise, and with G clusters
            never below 2^(1-G).
        queries: number of queries compared.
        clusters: number of clusters they are of.
    """

    difference: float
    interval: Interval
    p_value: float
    queries: int
    clusters: int


def mean_and_error(values: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Mean of `values` `[N]` and its standard error, both without NaN rows.

    Images of one entity are not independent, so deviations are summed within each of the `clusters` `[N]`
    first (cluster-robust error of a mean). With one row a cluster it is a share's sqrt(p (1 - p) / n). One
    cluster says nothing about others: its error is NaN.
    """
    sums, sizes = _by_cluster(values, clusters)
    rows = float(sizes.sum())
    if not rows:
        return math.nan, math.nan
    mean = float(sums.sum()) / rows
    if len(sums) < 2:
        return mean, math.nan
    return mean, float((sums - sizes * mean).square().sum().sqrt()) / rows


def bootstrap_interval(
    values: Tensor, clusters: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean of `values` `[N]`, drawing whole clusters.

    With fewer than 30 clusters, G, the ends are mean -+ t(G - 1) * error * sqrt(G / (G - 1)) with Student's
    t, and may lie outside the range of the values. They are that too with more than 1,000 clusters of unlike
    sums, none with over 1 % of the variance, where a bootstrap gives the same. Rows of NaN are left out. Both
    ends are NaN with fewer than two clusters, which say nothing about others.
    """
    sums, sizes = _by_cluster(values, clusters)
    number = len(sums)
    if number < 2:
        return Interval(math.nan, math.nan)
    # clusters with the same sum and size are drawn together
    kinds, alike = np.unique(sums.numpy() + 1j * sizes.numpy(), return_counts=True)
    mean, error = mean_and_error(values, clusters)
    if number < _FEW or (len(alike) > _MANY and _spread_out(sums - sizes * mean)):
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, number - 1)) * error * math.sqrt(number / (number - 1))
        return Interval(mean - half, mean + half)
    generator = np.random.default_rng(seed)
    shares = alike / number
    means = []
    size = max(1, _BLOCK // len(alike))
    for first in range(0, resamples, size):
        times = generator.multinomial(number, shares, size=min(size, resamples - first))
        means.append((times @ kinds.real) / (times @ kinds.imag))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(low, high)


def paired_test(a: Tensor, b: Tensor, clusters: Tensor, *, seed: int = 0) -> PairedTest:
    """Whether two models differ, from their values of the same queries.

    If they do not, the sign of each cluster's summed difference is a coin flip. With up to 12 clusters that
    differ all flips are counted, with more 9,999 random ones (and the one seen, so that p is never 0). With
    more than 1,000 different sums, none with over 1 % of their squares, p is that of the normal distribution
    to which the flips then come close.

    Args:
        a: `[Q]`, of the first model; NaN where it is undefined.
        b: `[Q]`, of the second.
        clusters: `[Q]`, 0 or more.
        seed: of the draws.

    Raises:
        InputError: the lengths differ.
    """
    if not len(a) == len(b) == len(clusters):
        raise InputError(
            f"paired values need the same queries; there are {len(a)}, {len(b)}, and {len(clusters)} clusters"
        )
    differences = a.double() - b.double()
    sums, sizes = _by_cluster(differences, clusters)
    queries = int(sizes.sum())
    mean = float(sums.sum()) / queries if queries else math.nan
    p_value = _sign_flips(sums[sums != 0], seed) if len(sums) > 1 else math.nan
    return PairedTest(mean, bootstrap_interval(differences, clusters, seed=seed), p_value, queries, len(sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values (Holm, 1979), in their order; NaN is no member."""
    corrected = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    highest = 0.0
    for place, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p))
        corrected[i] = highest
    return corrected


def _by_cluster(values: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the values that are not NaN, float64 `[G]` each, of the clusters that have any."""
    counted = ~values.isnan()
    kept = values[counted].double().cpu()
    found, group = torch.unique(clusters[counted].cpu(), return_inverse=True)
    sums = torch.zeros(len(found), dtype=torch.float64).scatter_add_(0, group, kept)
    return sums, torch.bincount(group, minlength=len(found)).double()


def _sign_flips(sums: Tensor, seed: int) -> float:
    """Share of the sign flips whose total is at least as far from 0 as that of `sums`."""
    number = len(sums)
    # totals that are equal on paper may differ by rounding
    seen = float(sums.sum().abs()) - 1e-12 * float(sums.abs().sum())
    if number <= _EXACT:
        flips = torch.arange(2**number)[:, None] >> torch.arange(number) & 1
        return float(((2.0 * flips - 1).double() @ sums).abs().ge(seen).double().mean())
    # of sums of one size only the number of flips counts
    sizes, alike = sums.abs().unique(return_counts=True)
    if len(sizes) > _MANY and _spread_out(sums):
        return math.erfc(seen / math.sqrt(2 * float(sums.square().sum())))
    generator = np.random.default_rng(seed)
    extreme = 1
    block = max(1, _BLOCK // len(sizes))
    for first in range(0, PERMUTATIONS, block):
        shape = (min(block, PERMUTATIONS - first), len(sizes))
        plus = torch.from_numpy(generator.binomial(alike.numpy(), 0.5, size=shape))
        extreme += int(((2 * plus - alike).double() @ sizes).abs().ge(seen).sum())
    return extreme / (PERMUTATIONS + 1)


def _spread_out(terms: Tensor) -> bool:
    squares = terms.square()
    return float(squares.max()) <= _SHARE * float(squares.sum())
