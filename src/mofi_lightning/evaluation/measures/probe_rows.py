"""The rows of a probe: an order and a validation split that depend on what rows hold, not on their place."""

from __future__ import annotations

import torch
from torch import Tensor

# share of each class's rows on which lambda is chosen
VALIDATION = 0.2
# logits smaller than this are rounding beside the biases
_FAINT = 1e-12


def content_order(features: Tensor, labels: Tensor) -> Tensor:
    """Order of the rows by class, within it along a fixed random direction: int64 `[N]`.

    However rows are dealt to ranks, a probe sees one matrix, and so gives one number. Along a direction,
    unlike by a hash, rounding of the features moves no row far.

    Args:
        features: `[N, F]`.
        labels: `[N]` integer.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[1], generator=generator, dtype=torch.float64).to(features.device)
    # not a matrix product, whose rounding may depend on where a row stands
    place = torch.cat([(block.double() * direction).sum(dim=1) for block in features.split(4096)])
    along = place.argsort(stable=True)
    return along[labels[along].argsort(stable=True)]


def too_faint(features: Tensor, classes: int, penalty: float) -> float | None:
    """Standard deviation (root mean square) of features that vary too little to count; None if they count.

    Weights under a penalty are about the features' sum of squares over it; below rounding of the biases no
    row's features change which class it is given.

    Args:
        features: `[N, F]`, not centred.
        classes: C, their number.
        penalty: lambda, the smallest that is tried.
    """
    mean = features.double().mean(dim=0)
    squares = sum(float((block.double() - mean).square().sum()) for block in features.split(4096))
    if squares / (classes * penalty) >= _FAINT:
        return None
    return (squares / features.numel()) ** 0.5


def validation_rows(labels: Tensor, share: float = VALIDATION) -> Tensor:
    """Which rows to validate on, bool `[N]`: in each class, evenly spaced rows, at least one of two.

    A class of one row has none.

    Args:
        labels: `[N]`, sorted as by `content_order`.
        share: of the rows of a class, at most a half.
    """
    _, sizes = torch.unique_consecutive(labels, return_counts=True)
    chosen = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    first = 0
    for size in sizes.tolist():
        number = max(1, round(size * share)) if size > 1 else 0
        for i in range(number):
            chosen[first + (2 * i + 1) * size // (2 * number)] = True
        first += size
    return chosen
