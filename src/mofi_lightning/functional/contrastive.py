"""Symmetric InfoNCE whose memory grows with the batch, not with its square.

With rows v_i, columns t_j, scale s and targets q_ij that sum to 1 over j, a row's cross-entropy is
`logsumexp_j(s v_i.t_j) - s v_i.(sum_j q_ij t_j)`. Only the log-sum-exp needs all pairs; the rest is one
product with the targets' mean column, whatever the number of positives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mofi_lightning.types import InputError

Repeats = Literal["positive", "mask", "negative"]


def info_nce(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    group: Tensor | None = None,
    repeats: Repeats = "positive",
    first: int = 0,
    label_smoothing: float = 0.0,
    merge: Callable[[Tensor], Tensor] | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """Mean of the image-to-text and the text-to-image cross-entropy (CLIP, arXiv 2103.00020, figure 3).

    The target of a pair is itself. Other pairs of its `group` are, by `repeats`: 'positive', targets too, all
    of the group alike; 'mask', left out of its denominators; 'negative', what they are without groups. Label
    smoothing e gives 1 - e to the targets and e to all pairs alike.

    Args:
        image: `[N, D]`, L2-normalised; with N < M a block of the batch's rows.
        text: `[M, D]`, L2-normalised, the whole batch.
        scale: inverse temperature, one element.
        group: int64 `[M]`, 0..M-1, as of `repeat_groups`; None where every pair stands alone.
        repeats: what pairs of one group are to each other.
        first: position of the first row of `image` within `text`.
        label_smoothing: e, at least 0 and below 1.
        merge: combines the blocks' log-sum-exps of the M columns; None where `image` is the whole batch.
        chunk_size: rows whose similarities with all columns exist at a time.

    Returns:
        0-D. The mean over equal blocks is the loss of the batch.

    Raises:
        InputError: as of `check_targets`.

    >>> pairs = torch.eye(4)
    >>> info_nce(pairs, pairs, torch.tensor(100.0))
    tensor(0.)
    """
    check_targets(repeats, label_smoothing)
    target = text if group is None or repeats != "positive" else positive_mean(text, group)
    target = target[first : first + len(image)]
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * text.mean(0)
    rows, columns = pairwise_logsumexp(
        image, text, scale, group if repeats == "mask" else None, first=first, chunk_size=chunk_size
    )
    if merge is not None:
        columns = merge(columns)
    # summed over the batch, the targets' logits are the same in both directions: positives are mutual
    return (rows.mean() + columns.mean()) / 2 - (scale * (image * target).sum(1)).mean()


def check_targets(repeats: Repeats, label_smoothing: float) -> None:
    """Refuse targets that are not defined.

    Raises:
        InputError: an unknown kind of repeats; smoothing outside [0, 1); smoothing over masked pairs: what a
            pair gets would depend on how many pairs its row, or its column, has left, so the two directions
            would have other targets.
    """
    if repeats not in get_args(Repeats):
        raise InputError(f"repeats is {repeats!r}; give one of {', '.join(map(repr, get_args(Repeats)))}")
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing is {label_smoothing}; give at least 0 and less than 1")
    if repeats == "mask" and label_smoothing:
        raise InputError(
            f"label_smoothing {label_smoothing} is not defined with repeats 'mask'; "
            "set repeats to 'positive' or 'negative', or label_smoothing to 0"
        )


def positive_mean(rows: Tensor, group: Tensor) -> Tensor:
    """Mean of the rows `[M, D]` of the same group (int64 `[M]`, 0..M-1), per row."""
    total = torch.zeros_like(rows).index_add(0, group, rows)
    count = torch.bincount(group, minlength=len(rows)).clamp(min=1).to(rows.dtype)
    return (total / count[:, None])[group]


def pairwise_logsumexp(
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    group: Tensor | None = None,
    *,
    first: int = 0,
    chunk_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the rows and over the columns of `scale * left @ right.T`, never held whole.

    The backward makes the products again, chunk by chunk, instead of keeping them.

    Args:
        left: `[N, D]`.
        right: `[M, D]`.
        scale: one element.
        group: int64 `[M]`; pairs of one group count only where they are the same position. None: all count.
        first: position of the first row of `left` within `group`.
        chunk_size: rows of the product that exist at a time.

    Returns:
        `[N]` and `[M]`; `-inf` for a column of which no pair counts.
    """
    rows, columns = _PairwiseLogSumExp.apply(left, right, scale, group, first, chunk_size)
    return rows, columns


class _PairwiseLogSumExp(Function):
    @staticmethod
    def forward(
        ctx: Any,
        left: Tensor,
        right: Tensor,
        scale: Tensor,
        group: Tensor | None,
        first: int,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        rows = left.new_empty(len(left))
        columns = right.new_full((len(right),), -torch.inf)
        lowest = torch.finfo(left.dtype).min  # instead of a maximum of -inf, which would make NaN
        for chunk, _, logits, work in _chunks(left, right, scale, group, first, chunk_size):
            largest = logits.amax(1)
            exp = torch.sub(logits, largest[:, None], out=work).exp_()
            rows[chunk] = exp.sum(1).log_().add_(largest)
            largest = logits.amax(0).clamp_(min=lowest)
            exp = logits.sub_(largest).exp_()
            columns = torch.logaddexp(columns, exp.sum(0).log_().add_(largest))
        ctx.save_for_backward(left, right, scale, group, rows, columns.clamp(min=lowest))
        ctx.first, ctx.chunk_size = first, chunk_size
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, rows_gradient: Tensor, columns_gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        left, right, scale, group, rows, columns = ctx.saved_tensors
        left_gradient = torch.empty_like(left)
        right_gradient = torch.zeros_like(right)
        scale_gradient = torch.zeros_like(scale)
        for chunk, scaled, logits, work in _chunks(left, right, scale, group, ctx.first, ctx.chunk_size):
            # two shifts: with one for rows and columns, exp underflows once logits spread over more than 87
            gradient = torch.sub(logits, rows[chunk, None], out=work).exp_().mul_(rows_gradient[chunk, None])
            gradient.addcmul_(logits.sub_(columns).exp_(), columns_gradient)
            scaled_gradient = gradient @ right
            right_gradient.addmm_(gradient.T, scaled)
            scale_gradient += (scaled_gradient * left[chunk]).sum()
            left_gradient[chunk] = scaled_gradient.mul_(scale)
        return left_gradient, right_gradient, scale_gradient, None, None, None


def _chunks(
    left: Tensor, right: Tensor, scale: Tensor, group: Tensor | None, first: int, chunk_size: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Per chunk: its rows, `scale * left[rows]`, the logits (`-inf` where no pair counts), as large a buffer.

    Logits and buffer are the same memory for every chunk: fresh pages cost as much as the arithmetic on them.
    """
    size = min(chunk_size, len(left))
    memory = left.new_empty(2, size, len(right))
    for start in range(0, len(left), size):
        chunk = slice(start, min(start + size, len(left)))
        scaled = left[chunk] * scale
        logits, work = memory[:, : len(scaled)]
        torch.mm(scaled, right.T, out=logits)
        if group is not None:
            own = first + start
            repeat = group[own : own + len(scaled), None] == group
            repeat.diagonal(own).fill_(False)
            logits.masked_fill_(repeat, -torch.inf)
        yield chunk, scaled, logits, work
