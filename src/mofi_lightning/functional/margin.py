"""Softmax logits with a margin."""

from __future__ import annotations

from torch import Tensor


def cosface_logits(cosine: Tensor, target: Tensor, margin: float, scale: float) -> Tensor:
    """Logits `z_c = scale * (cos_c - margin * [c = target])` (CosFace, arXiv 1801.09414, equation 4).

    Args:
        cosine: `[N, K]` between unit features and unit class vectors.
        target: int64 `[N]`, column of the row's class, -1 where it is not among the columns.
        margin: m, subtracted from the target's cosine.
        scale: s, inverse temperature.

    Returns:
        `[N, K]`.
    """
    if not cosine.shape[1]:
        return cosine
    margins = -margin * (target >= 0).to(cosine.dtype)
    return scale * cosine.scatter_add(1, target.clamp(min=0)[:, None], margins[:, None])
