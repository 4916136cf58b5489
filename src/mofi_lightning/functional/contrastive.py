"""Symmetric InfoNCE whose memory grows with the batch, not with its square.

With rows v_i, columns t_j, scale s and targets q_ij that sum to 1 over j, a row's cross-entropy is
`logsumexp_j(s v_i.t_j) - s v_i.(sum_j q_ij t_j)`. Only the log-sum-exp needs all pairs; the rest is one
product with the targets' mean column, whatever the number of positives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    entity: Tensor | None = None,
    first: int = 0,
    label_smoothing: float = 0.0,
    merge: Callable[[Tensor], Tensor] | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """Mean of the image-to-text and the text-to-image cross-entropy (CLIP, arXiv 2103.00020, figure 3).

    The targets of a row are uniform over its positives: its own pair and, given `entity`, all pairs of the
    same entity. Label smoothing e gives 1 - e to them and e to all pairs alike.

    Args:
        image: `[N, D]`, L2-normalised; with N < M a block of the batch's rows.
        text: `[M, D]`, L2-normalised, the whole batch.
        scale: inverse temperature, one element.
        entity: int64 `[M]`, -1 for rows whose only positive is their own pair.
        first: position of the first row of `image` within `text`.
        label_smoothing: e, 0..1.
        merge: combines the blocks' log-sum-exps of the M columns; None where `image` is the whole batch.
        chunk_size: rows whose similarities with all columns exist at a time.

    Returns:
        0-D. The mean over equal blocks is the loss of the batch.

    >>> pairs = torch.eye(4)
    >>> info_nce(pairs, pairs, torch.tensor(100.0))
    tensor(0.)
    """
    target = text if entity is None else positive_mean(text, entity)
    target = target[first : first + len(image)]
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * text.mean(0)
    rows, columns = pairwise_logsumexp(image, text, scale, chunk_size)
    if merge is not None:
        columns = merge(columns)
    # summed over the batch, the targets' logits are the same in both directions: positives are mutual
    return (rows.mean() + columns.mean()) / 2 - (scale * (image * target).sum(1)).mean()


def positive_mean(rows: Tensor, entity: Tensor) -> Tensor:
    """Mean of the rows `[M, D]` of the same entity `[M]`, per row; the row itself where that is -1."""
    alone = -1 - torch.arange(len(entity), device=entity.device)
    _, group = torch.where(entity >= 0, entity, alone).unique(return_inverse=True)
    total = torch.zeros_like(rows).index_add(0, group, rows)
    count = torch.bincount(group, minlength=len(rows)).clamp(min=1).to(rows.dtype)
    return (total / count[:, None])[group]


def pairwise_logsumexp(
    left: Tensor, right: Tensor, scale: Tensor, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the rows and over the columns of `scale * left @ right.T`, never held whole.

    The backward makes the products again, chunk by chunk, instead of keeping them.

    Args:
        left: `[N, D]`.
        right: `[M, D]`.
        scale: one element.
        chunk_size: rows of the product that exist at a time.

    Returns:
        `[N]` and `[M]`.
    """
    rows, columns = _PairwiseLogSumExp.apply(left, right, scale, chunk_size)
    return rows, columns


class _PairwiseLogSumExp(Function):
    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        rows = left.new_empty(len(left))
        columns = right.new_full((len(right),), -torch.inf)
        for start in range(0, len(left), chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = (left[chunk] * scale) @ right.T
            rows[chunk] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
        ctx.save_for_backward(left, right, scale, rows, columns)
        ctx.chunk_size = chunk_size
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, rows_gradient: Tensor, columns_gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        left, right, scale, rows, columns = ctx.saved_tensors
        left_gradient = torch.empty_like(left)
        right_gradient = torch.zeros_like(right)
        scale_gradient = torch.zeros_like(scale)
        for start in range(0, len(left), ctx.chunk_size):
            chunk = slice(start, start + ctx.chunk_size)
            scaled = left[chunk] * scale
            logits = scaled @ right.T
            # two shifts: with one for rows and columns, exp underflows once logits spread over more than 87
            gradient = (logits - rows[chunk, None]).exp_().mul_(rows_gradient[chunk, None])
            gradient.add_(logits.sub_(columns).exp_().mul_(columns_gradient))
            scaled_gradient = gradient @ right
            left_gradient[chunk] = scaled_gradient * scale
            right_gradient.addmm_(gradient.T, scaled)
            scale_gradient += (scaled_gradient * left[chunk]).sum()
        return left_gradient, right_gradient, scale_gradient, None
