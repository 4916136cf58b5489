"""Linear probe: multinomial logistic regression on frozen features, with CLIP's search for the penalty.

Source: Radford et al., 2021, section A.3: L-BFGS, at most 1000 iterations, lambda over 96 logarithmic steps
between 1e-6 and 1e6 by a bracketed search on a validation split, then a fit on training and validation rows
together. Features are not standardised, as there.

The objective is sum of cross-entropies + lambda / 2 * ||weight||^2, the bias free: scikit-learn's
`LogisticRegression` with C = 1 / lambda (for two classes C = 2 / lambda, as it keeps one row of weights for
both). It is minimised in fp64 along the features' principal axes, each scaled by its curvature, and as its
logarithm, so that "small gradient" is relative: the same minimum, reached in a fraction of the iterations,
also where the classes are separable and an absolute tolerance stops far from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.evaluation.measures.linear_classifier import LinearClassifier
from mofi_lightning.evaluation.measures.principal_axes import principal_axes
from mofi_lightning.evaluation.measures.probe_rows import content_order, validation_rows
from mofi_lightning.evaluation.measures.probe_states import ProbeStates
from mofi_lightning.progress import track
from mofi_lightning.types import InputError

MAX_ITERATIONS = 1000
# eight steps a decade
LAMBDAS = tuple(10.0 ** (step / 8) for step in range(-48, 49))
_STRIDE = 16

# elements of one block of logits: 16 MiB in fp64
_BLOCK = 2**21
# a fit ends where the largest entry of the gradient of the objective's logarithm is this share of that at
# weights of 0: entries shrink with the number of classes and with lambda, so that no fixed size serves all
_TOLERANCE = 1e-4
_TOLERANCE_OF_SEARCH = 0.03
# what rounding leaves of a gradient that is 0
_ROUNDING = 64 * torch.finfo(torch.float64).eps


class Trial(NamedTuple):
    """How a lambda did on the validation rows; of equal accuracies the lower cross-entropy is better."""

    accuracy: float
    cross_entropy: float

    @property
    def merit(self) -> tuple[float, float]:
        """Larger is better."""
        return self.accuracy, -self.cross_entropy


@dataclass(frozen=True)
class LinearProbeFit:
    """A fitted probe.

    Attributes:
        classifier: fitted on all rows.
        penalty: the lambda chosen.
        trials: lambda -> how it did; empty where lambda was given.
        iterations: of the last fit.
        converged: whether the last fit ended at the minimum, not at the limit of iterations or stuck.
    """

    classifier: LinearClassifier
    penalty: float
    trials: Mapping[float, Trial]
    iterations: int
    converged: bool


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    penalty: float | None = None,
    max_iterations: int = MAX_ITERATIONS,
    title: str | None = None,
) -> LinearProbeFit:
    """Fit a linear probe; the order of the rows does not matter.

    Args:
        features: `[N, F]`, on any device.
        labels: `[N]`, integer.
        penalty: lambda; None searches it on a fifth of each class.
        max_iterations: of L-BFGS, a fit.
        title: of a progress bar; None shows none.

    Raises:
        InputError: a feature is not finite, there are fewer than two classes, or no class has the two rows
            that the search for lambda needs.
    """
    order = content_order(features, labels)
    classes, targets = torch.unique(labels[order], return_inverse=True)
    if len(classes) < 2:
        raise InputError(
            f"a probe needs rows of two classes or more; {len(labels)} rows are of {len(classes)}"
        )
    held_out = validation_rows(targets)
    if penalty is None and not held_out.any():
        raise InputError(
            f"no class has two rows, so that none can be held out to choose lambda ({len(labels)} rows); "
            "give a penalty"
        )
    axes = principal_axes(features[order])
    trials: dict[int, Trial] = {}
    starts: dict[int, Tensor] = {}

    def fits() -> Iterator[_Minimum]:
        chosen, start = penalty, None
        if chosen is None:
            training = _Problem(axes.coordinates[~held_out], targets[~held_out], len(classes), axes.energies)
            validation = _Problem(axes.coordinates[held_out], targets[held_out], len(classes), axes.energies)
            for step in bracketed_steps(trials, len(LAMBDAS), _STRIDE):
                near = min(starts, key=lambda known: (abs(known - step), -known), default=None)
                start = None if near is None else starts[near]
                trial = training.minimise(LAMBDAS[step], max_iterations, _TOLERANCE_OF_SEARCH, start)
                starts[step] = trial.parameters
                trials[step] = validation.try_out(trial.parameters)
                yield trial
            best = max(trials, key=lambda step: trials[step].merit)
            chosen, start = LAMBDAS[best], starts[best]
        whole = _Problem(axes.coordinates, targets, len(classes), axes.energies)
        yield whole.minimise(chosen, max_iterations, _TOLERANCE, start)

    number = 1 if penalty is not None else 1 + _most_steps(len(LAMBDAS), _STRIDE)
    *_, fit = fits() if title is None else track(fits(), title, number)
    weight = fit.parameters[:, :-1] @ axes.axes
    bias = fit.parameters[:, -1] - weight @ axes.mean
    return LinearProbeFit(
        LinearClassifier(weight, bias - bias.mean(), classes),
        fit.penalty,
        {LAMBDAS[step]: trials[step] for step in sorted(trials)},
        fit.iterations,
        fit.converged,
    )


def bracketed_steps(trials: Mapping[int, Trial], number: int, stride: int) -> Iterator[int]:
    """Steps of a grid to try: every `stride`-th, the highest first, then halfway on both sides of the best.

    Args:
        trials: of the steps yielded before, filled by the caller.
        number: of steps of the grid.
        stride: a power of two.
    """
    yield from reversed(range(0, number, stride))
    while stride > 1:
        stride //= 2
        best = max(trials, key=lambda step: trials[step].merit)
        yield from (step for step in (best + stride, best - stride) if 0 <= step < number)


def _most_steps(number: int, stride: int) -> int:
    return len(range(0, number, stride)) + 2 * (stride.bit_length() - 1)


class _Minimum(NamedTuple):
    penalty: float
    parameters: Tensor
    iterations: int
    converged: bool


class _Problem:
    """Logistic regression on coordinates `[N, r]`; parameters `[C, r + 1]`, the bias last."""

    def __init__(self, coordinates: Tensor, targets: Tensor, classes: int, energies: Tensor) -> None:
        self.coordinates = coordinates
        self.targets = targets
        self.classes = classes
        self.variances = energies / len(targets)

    def minimise(
        self, penalty: float, max_iterations: int, tolerance: float, start: Tensor | None
    ) -> _Minimum:
        from scipy.optimize import minimize
        from threadpoolctl import threadpool_limits

        rows = len(self.targets)
        # a softmax over C equal classes has curvature (1 - 1 / C) / C in every direction of the features
        curvature = (1 - 1 / self.classes) / self.classes
        scale = (curvature * self.variances + penalty / rows).rsqrt()
        scale = torch.cat([scale, scale.new_tensor([curvature]).rsqrt()])
        shape = (self.classes, len(scale))

        def objective(vector: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = torch.from_numpy(vector).view(shape).to(scale.device) * scale
            loss, gradient = self.loss(parameters)
            weight = parameters[:, :-1]
            gradient[:, :-1] += penalty * weight
            value = loss + penalty / 2 * weight.square().sum()
            return math.log(value), (gradient * (scale / value)).flatten().cpu().numpy()

        # at weights of 0 the best biases are the logarithms of the shares of the classes
        origin = torch.zeros(shape, dtype=torch.float64, device=scale.device)
        origin[:, -1] = (torch.bincount(self.targets, minlength=self.classes).double() / rows).log()
        loss, slope = self.loss(origin)
        steepest = float((slope * scale).abs().max() / loss)
        if start is None:
            # a step along the gradient is the minimum where the penalty rules
            start = origin - slope * scale.square() / rows
        # threads of NumPy's BLAS, which has nothing to do here, would wait in the way of torch's
        with threadpool_limits(1, "blas"):
            found = minimize(
                objective,
                (start / scale).flatten().cpu().numpy(),
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": max_iterations,
                    "maxfun": 10 * max_iterations,
                    "maxls": 50,
                    "gtol": max(tolerance * steepest, _ROUNDING),
                    "ftol": _ROUNDING,
                },
            )
        parameters = torch.from_numpy(found.x).view(shape).to(scale.device) * scale
        return _Minimum(penalty, parameters, int(found.nit), bool(found.success))

    def loss(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of cross-entropies (0-D) and its gradient `[C, r + 1]`."""
        loss = parameters.new_zeros(())
        gradient = torch.zeros_like(parameters)
        for block, own, logits in self._logits(parameters):
            # in place: a pass over memory costs as much as a matrix product with a few hundred features
            logits -= logits.amax(dim=1, keepdim=True)
            loss -= logits.gather(1, own[:, None]).sum()
            residual = logits.exp_()
            total = residual.sum(dim=1, keepdim=True)
            loss += total.log().sum()
            residual /= total
            residual[torch.arange(len(own), device=own.device), own] -= 1
            gradient[:, :-1].addmm_(residual.T, block)
            gradient[:, -1] += residual.sum(dim=0)
        return loss, gradient

    def try_out(self, parameters: Tensor) -> Trial:
        """Accuracy (equal scores count against a row) and mean cross-entropy."""
        right, loss = 0, 0.0
        for _, own, logits in self._logits(parameters):
            true = logits.gather(1, own[:, None])
            right += int(((logits >= true).sum(dim=1) == 1).sum())
            loss += float((logits.logsumexp(dim=1) - true[:, 0]).sum())
        return Trial(right / len(self.targets), loss / len(self.targets))

    def _logits(self, parameters: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = max(1, _BLOCK // self.classes)
        for block, own in zip(self.coordinates.split(size), self.targets.split(size), strict=True):
            yield block, own, torch.addmm(parameters[:, -1], block, parameters[:, :-1].T)


class LinearProbeAccuracy(ProbeStates):
    """Top-1 accuracy of a linear probe over all rows of all ranks; see `ProbeStates`.

    Args:
        penalty: lambda; None searches it.
        max_iterations: of L-BFGS, a fit.
        kwargs: of `torchmetrics.Metric`.
    """

    def __init__(
        self, penalty: float | None = None, max_iterations: int = MAX_ITERATIONS, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.penalty = penalty
        self.max_iterations = max_iterations

    def fit(self, features: Tensor, labels: Tensor) -> LinearClassifier:
        """Logistic regression on these rows."""
        fit = fit_linear_probe(features, labels, penalty=self.penalty, max_iterations=self.max_iterations)
        return fit.classifier
