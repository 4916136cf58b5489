"""Ridge probe: least squares from frozen features to one-hot classes, lambda by exact leave-one-out.

The objective is ||Y - X weight - bias||^2 + lambda * ||weight||^2, the bias free: scikit-learn's `Ridge` with
alpha = lambda. The lambda is that of the lowest squared leave-one-out error (PRESS; Allen, 1974), as in its
`RidgeClassifierCV`; one eigendecomposition serves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mofi_lightning.evaluation.measures.linear_classifier import LinearClassifier
from mofi_lightning.evaluation.measures.principal_axes import PrincipalAxes, principal_axes
from mofi_lightning.evaluation.measures.probe_rows import content_order
from mofi_lightning.evaluation.measures.probe_states import ProbeStates
from mofi_lightning.types import InputError

# two steps a decade: the error changes slowly with lambda
LAMBDAS = tuple(10.0 ** (step / 2) for step in range(-12, 13))
# elements of one block of predictions: 16 MiB in fp64
_BLOCK = 2**21


@dataclass(frozen=True)
class RidgeProbeFit:
    """A fitted probe.

    Attributes:
        classifier: fitted on all rows.
        penalty: the lambda chosen; the highest among equals.
        errors: lambda -> mean squared leave-one-out error of a row, summed over its classes.
    """

    classifier: LinearClassifier
    penalty: float
    errors: Mapping[float, float]


def fit_ridge_probe(features: Tensor, labels: Tensor, *, lambdas: Sequence[float] = LAMBDAS) -> RidgeProbeFit:
    """Fit a ridge probe; the order of the rows does not matter.

    Args:
        features: `[N, F]`, on any device; not standardised.
        labels: `[N]`, integer.
        lambdas: penalties to choose from, positive.

    Raises:
        InputError: a feature is not finite, there are fewer than two classes, or a lambda is not positive.
    """
    if not lambdas or min(lambdas) <= 0:
        raise InputError(f"lambdas {list(lambdas)} must be positive, and at least one")
    order = content_order(features, labels)
    classes, targets = torch.unique(labels[order], return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"a probe needs rows of two classes or more; {len(labels)} rows are of {len(classes)}"
        )
    axes = principal_axes(features[order])
    shares = torch.bincount(targets, minlength=len(classes)).double() / len(targets)
    # coordinates have mean 0, so centring the targets changes nothing in this product
    projected = torch.zeros(len(classes), len(axes.energies), dtype=torch.float64, device=features.device)
    projected.index_add_(0, targets, axes.coordinates)
    errors = {penalty: _press(axes, targets, projected, shares, penalty) for penalty in sorted(lambdas)}
    penalty = min(reversed(errors), key=lambda tried: errors[tried])
    weight = (projected / (axes.energies + penalty)) @ axes.axes
    return RidgeProbeFit(LinearClassifier(weight, shares - weight @ axes.mean, classes), penalty, errors)


def _press(axes: PrincipalAxes, targets: Tensor, projected: Tensor, shares: Tensor, penalty: float) -> float:
    rows = len(targets)
    weight = projected / (axes.energies + penalty)
    total = 0.0
    size = max(1, _BLOCK // len(shares))
    for block, own in zip(axes.coordinates.split(size), targets.split(size), strict=True):
        residual = torch.addmm(shares, block, weight.T)
        residual[torch.arange(len(own), device=own.device), own] -= 1
        leverage = 1 / rows + (block.square() / (axes.energies + penalty)).sum(dim=1)
        # a row that alone decides its prediction has residual 0 too; its error is unbounded, not 0 / 0
        total += float((residual.square().sum(dim=1) / (1 - leverage).clamp_min(1e-12).square()).sum())
    return total / rows


class RidgeProbeAccuracy(ProbeStates):
    """Top-1 accuracy of a ridge probe over all rows of all ranks; see `ProbeStates`.

    Args:
        lambdas: penalties to choose from.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(self, lambdas: Sequence[float] = LAMBDAS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lambdas = tuple(lambdas)

    def fit(self, features: Tensor, labels: Tensor) -> LinearClassifier:
        """Least squares on these rows."""
        return fit_ridge_probe(features, labels, lambdas=self.lambdas).classifier
