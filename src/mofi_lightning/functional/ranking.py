"""Losses that rank the right label above the others."""

from __future__ import annotations

import torch
from torch import Tensor


def hinge_rank(
    mapped: Tensor,
    labels: Tensor,
    target: Tensor,
    margin: float,
    *,
    candidates: Tensor | None = None,
    order: Tensor | None = None,
    chunk_size: int = 2048,
) -> tuple[Tensor, Tensor]:
    """Hinge rank loss of DeViSE (Frome et al., NIPS 2013, section 3.3) over fixed label vectors.

    With scores s_j = mapped . labels_j, a row costs the sum of `max(0, margin - s_target + s_j)` over the
    candidates j other than its target; with `order`, as the paper trains, only of the first j that violates
    the margin. The loss is linear in `mapped` once the violating j are known, so their sum of vectors is all
    that is kept for the backward: nothing grows with rows times labels.

    Args:
        mapped: `[N, V]`, images in the space of the label vectors.
        labels: `[C, V]`, gets no gradient.
        target: int64 `[N]`, the right label; -1 for none, such a row costs 0.
        margin: by which the right label must lead, at least 0.
        candidates: int64 `[K]`, distinct labels that compete; None for all.
        order: int32 `[C]`, the labels' places in a random order that is closed to a circle. A row goes round
            it from its own target on: for every row the others come in random order, and rows of different
            targets meet different labels first.
        chunk_size: labels whose scores exist at a time.

    Returns:
        The losses `[N]`, and bool `[N]`: the row has a target that no candidate outranks.

    >>> losses, top1 = hinge_rank(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 0.1)
    >>> losses, top1
    (tensor([0., 0.]), tensor([True, True]))
    """
    if candidates is None:
        candidates = torch.arange(len(labels), device=labels.device)
    top1 = target >= 0
    target_or_any = target.clamp(min=0)
    own = labels[target_or_any]
    with torch.no_grad():
        # the sum over the violating j of (labels_j - labels_target), and their number
        direction, count = torch.zeros_like(mapped), mapped.new_zeros(len(mapped))
        first = target_or_any  # of the violating labels, and how far round the circle it is
        distance = torch.full_like(target, len(labels), dtype=torch.int32)
        # nothing reaches an infinite score: rows without target violate nothing
        score = torch.where(top1, (mapped * own).sum(1), torch.inf)[:, None]
        for start in range(0, len(candidates), chunk_size):
            ids = candidates[start : start + chunk_size]
            vectors = labels[ids]
            lead = (mapped @ vectors.T).sub_(score).masked_fill_(ids == target[:, None], -torch.inf)
            top1 = top1 & (lead <= 0).all(1)
            violates = lead > -margin
            if order is None:
                direction += violates.to(mapped.dtype) @ vectors
                count += violates.sum(1)
            else:
                steps = (order[ids] - order[target_or_any][:, None]).remainder_(len(labels))
                nearest, column = steps.masked_fill_(~violates, len(labels)).min(1)
                first = torch.where(nearest < distance, ids[column], first)
                distance = torch.minimum(nearest, distance)
        if order is not None:
            count += distance < len(labels)
            direction += count[:, None] * labels[first]
        direction -= count[:, None] * own
    return margin * count + (mapped * direction).sum(1), top1
