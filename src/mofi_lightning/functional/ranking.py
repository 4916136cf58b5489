"""Losses that rank the right label above the others."""

from __future__ import annotations

import torch
from torch import Tensor


def hinge_rank(scores: Tensor, target: Tensor, margin: float) -> Tensor:
    """Hinge rank loss `[N]` of DeViSE (Frome et al., NIPS 2013, section 3.3).

    The paper's equation sums `max(0, margin - score_target + score_j)` over j; it is trained on that sum
    taken in random order and cut off after the first j that violates the margin. This is the expectation of
    the cut-off sum over all orders: the mean over the violating j.

    Args:
        scores: `[N, C]` of all labels.
        target: int64 `[N]`, the right label; rows with -1 get a value without meaning.
        margin: by which the right label must lead.
    """
    index = target.clamp(min=0)[:, None]
    violation = (margin - scores.gather(1, index) + scores).clamp(min=0)
    violation = violation.scatter(1, index, 0.0)
    return violation.sum(1) / torch.count_nonzero(violation, 1).clamp(min=1)
