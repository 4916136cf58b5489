"""Features in the axes of their variation: centred, rotated, without the directions in which nothing varies.

Probes with an L2 penalty and a free intercept are the same problem in these coordinates (the penalty does not
change under rotation, centring moves only the intercept, and an axis without variation gets weight 0), and an
easier one: at most min(N - 1, F) columns, which are orthogonal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mofi_lightning.types import InputError

# rows that are brought to fp64 at once
_ROWS = 4096


class PrincipalAxes(NamedTuple):
    """N features `[N, F]` as mean + coordinates @ axes, all fp64; r axes, the strongest first.

    Attributes:
        mean: `[F]`.
        axes: `[r, F]`, orthonormal.
        coordinates: `[N, r]`, orthogonal columns.
        energies: `[r]`, sums of squares of the columns, all positive.
    """

    mean: Tensor
    axes: Tensor
    coordinates: Tensor
    energies: Tensor


def principal_axes(features: Tensor) -> PrincipalAxes:
    """Principal axes of `features` `[N, F]`, by the smaller of the covariance and the Gram matrix.

    Axes whose energy is within rounding of the strongest one's are left out.

    Raises:
        InputError: a feature is not finite.
    """
    rows, width = features.shape
    mean = sum(
        (block.double().sum(dim=0) for block in features.split(_ROWS)), features.new_zeros(width).double()
    )
    mean = mean / rows
    if not mean.isfinite().all():
        wrong = int((~features.isfinite().all(dim=1)).sum())
        raise InputError(
            f"{wrong} of {rows} rows of features are not finite; leave these images out or repair the model"
        )
    if width <= rows:
        scatter = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for block in features.split(_ROWS):
            centred = block.double() - mean
            scatter.addmm_(centred.T, centred)
        energies, axes = _strongest(scatter)
        coordinates = torch.cat([(block.double() - mean) @ axes for block in features.split(_ROWS)])
        return PrincipalAxes(mean, axes.T, coordinates, energies)
    centred = features.double() - mean
    energies, unit = _strongest(centred @ centred.T)
    size = energies.sqrt()
    return PrincipalAxes(mean, (unit / size).T @ centred, unit * size, energies)


def _strongest(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues above rounding `[r]`, descending, and their eigenvectors `[n, r]`."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values[-1].clamp_min(0) * len(matrix) * torch.finfo(torch.float64).eps
    return values[kept].flip(0), vectors[:, kept].flip(1)
