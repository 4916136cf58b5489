"""Collectives with the gradients that data parallelism needs.

The convention behind every backward here: a rank's loss is L_r, the loss of the global batch is the mean of
L_r over ranks, and data parallelism averages the ranks' gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, differentiably: `[B, ...]` to `[W * B, ...]`, in the order of the ranks.

    The backward sums the ranks' gradients of a row and hands it to the row's owner. Every rank brings the
    same B; a token axis (`[B, T, F]`) may differ and is padded with zeros to the ranks' longest.
    """
    if world_size() == 1:
        return x
    rows: Tensor = _Gather.apply(_pad_to_longest(x) if x.dim() > 2 else x)
    return rows


@torch.no_grad()
def gather_labels(x: Tensor) -> Tensor:
    """Rows of all ranks, without gradient: labels `[B]` to `[W * B]`, token masks `[B, T]` to `[W * B, T]`.

    Every rank brings the same B; a token axis may differ and is padded with zeros to the ranks' longest.
    """
    if world_size() == 1:
        return x
    return _all_gather(_pad_to_longest(x) if x.dim() > 1 else x)


def all_reduce(x: Tensor) -> Tensor:
    """Sum of `x` over ranks whose backward is the identity.

    For a result that every rank holds alike and that is made of the ranks' parts: each rank gets the
    gradient of its own part. Data parallelism then divides by W; see `scale_gradient`.
    """
    if world_size() == 1:
        return x
    total: Tensor = _AllReduce.apply(x)
    return total


def all_reduce_logsumexp(x: Tensor) -> Tensor:
    """Elementwise log-sum-exp over ranks with `all_reduce`'s backward; `-inf` where a rank has none."""
    if world_size() == 1:
        return x
    largest = x.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return all_reduce((x - largest).exp()).log() + largest


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, its gradient multiplied by `factor`.

    By W for what all ranks compute together with `all_reduce`: their parts add up, but data parallelism
    takes the mean (Partial FC, arXiv 2203.15565).
    """
    scaled: Tensor = _ScaleGradient.apply(x, factor)
    return scaled


def global_mean(values: Tensor, mask: Tensor) -> Tensor:
    """This rank's share of the mean of `values` `[B]` over all ranks' rows where `mask` `[B]` is true.

    The mean over ranks of the results is that mean, whichever rank holds the rows; with no such row
    anywhere it is 0 and still part of the graph, so that every rank runs the same backward.

    >>> global_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    count = mask.sum().to(values.dtype)
    if world_size() > 1:
        dist.all_reduce(count)
    counted = torch.where(mask, values, torch.zeros_like(values))
    return counted.sum() * (world_size() / count.clamp(min=1))


def _all_gather(x: Tensor) -> Tensor:
    rows = x.new_empty(world_size() * x.shape[0], *x.shape[1:])
    dist.all_gather_single(rows, x.contiguous())
    return rows


def _pad_to_longest(x: Tensor) -> Tensor:
    longest = torch.tensor([x.shape[1]], device=x.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padding = int(longest) - x.shape[1]
    if padding == 0:
        return x
    return torch.cat([x, x.new_zeros(x.shape[0], padding, *x.shape[2:])], dim=1)


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(gradient.shape[0] // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_single(own, gradient.contiguous())
        return own


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
