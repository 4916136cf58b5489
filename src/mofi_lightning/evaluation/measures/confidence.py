"""How sure a mean is: standard errors, bootstrap intervals and paired tests that know clusters.

Images of one entity are not independent, so whole clusters are drawn and deviations are summed within them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def mean_and_error(values: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Mean of `values` `[N]` and its standard error, both without NaN rows.

    Images of one entity are not independent, so deviations are summed within each of the `clusters` `[N]`
    first (cluster-robust error of a mean). With one row a cluster it is a share's sqrt(p (1 - p) / n).
    """
    counted = ~values.isnan()
    kept, group = values[counted].double(), clusters[counted]
    if not len(kept):
        return float("nan"), float("nan")
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).scatter_add_(0, group, kept - kept.mean())
    return float(kept.mean()), float(sums.square().sum().sqrt() / len(kept))


def bootstrap_interval(
    values: Tensor, clusters: Tensor, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean of `values` `[N]`, drawing whole clusters; NaN rows are left out."""
    counted = ~values.isnan()
    if not counted.any():
        return Interval(float("nan"), float("nan"))
    kept = values[counted].double()
    group = torch.unique(clusters[counted], return_inverse=True)[1]
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).scatter_add_(0, group, kept)
    sizes = torch.zeros_like(sums).scatter_add_(0, group, torch.ones_like(kept))
    generator = torch.Generator().manual_seed(seed)
    means = torch.empty(resamples, dtype=torch.float64)
    for number in range(resamples):
        drawn = torch.randint(len(sums), (len(sums),), generator=generator)
        means[number] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(low, high)
