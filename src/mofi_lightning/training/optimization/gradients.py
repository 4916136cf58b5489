"""Norms of the gradients, and what they decide: how far to clip, and whether to take the step at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import world_size


class Gradients:
    """The gradients of a run's parameters, sharded or not, part by part.

    All norms of a step take one collective and one transfer to the host.

    Args:
        parts: parameters by the name of their part.
        replicas: number of copies of each shard among the ranks.

    Attributes:
        norms: L2 norms of the step by part, before clipping.
        total: L2 norm over all parts, before clipping; inf or nan where the loss or a gradient is.
        stop: whether a rank was asked to stop before this step was measured; the same on all ranks.
    """

    def __init__(self, parts: Mapping[str, Iterable[nn.Parameter]], replicas: int = 1) -> None:
        self._parts = {name: [p for p in part if p.requires_grad] for name, part in parts.items()}
        self._parts = {name: part for name, part in self._parts.items() if part}
        self._replicas = replicas if world_size() > 1 else 1
        self.norms: dict[str, float] = {}
        self.total = 0.0
        self.stop = False

    @torch.no_grad()
    def measure(self, loss: Tensor, stop: bool = False) -> None:
        """Take the norms; all ranks must call.

        Args:
            loss: 0-D; where that of any rank is not finite, `total` is not either, on all ranks.
            stop: whether this rank was asked to stop.
        """
        squares = [_sum_of_squares(part, loss) for part in self._parts.values()]
        # an infinite loss may have finite gradients: 0 * loss is nan
        stacked = torch.stack([*squares, (loss * 0).reshape(()), loss.new_full((), float(stop))])
        if world_size() > 1:
            dist.all_reduce(stacked)
        *values, fault, stops = stacked.tolist()
        self.stop = stops > 0
        values = [value / self._replicas for value in values]
        self.norms = {name: math.sqrt(value) for name, value in zip(self._parts, values, strict=True)}
        self.total = math.sqrt(sum(values)) + fault

    @property
    def finite(self) -> bool:
        """Whether loss and gradients of the step are, on all ranks."""
        return math.isfinite(self.total)

    @torch.no_grad()
    def clip(self, max_norm: float) -> None:
        """Scale all gradients to a total norm of at most `max_norm`, as torch's `clip_grad_norm_`."""
        factor = max_norm / (self.total + 1e-6)
        if factor < 1:
            for gradients in self._local():
                torch._foreach_mul_(gradients, factor)

    @torch.no_grad()
    def clip_values(self, limit: float) -> None:
        """Put every entry of the gradients into -limit..limit, as torch's `clip_grad_value_`."""
        for gradients in self._local():
            torch._foreach_clamp_min_(gradients, -limit)
            torch._foreach_clamp_max_(gradients, limit)

    def drop(self) -> None:
        """Forget the gradients: the optimizer then changes nothing, not even its own state."""
        for part in self._parts.values():
            for parameter in part:
                parameter.grad = None

    def _local(self) -> Iterator[list[Tensor]]:
        """The parts' gradients as this rank holds them, without the parts that have none."""
        return filter(None, map(_local_gradients, self._parts.values()))


def _local_gradients(part: Iterable[nn.Parameter]) -> list[Tensor]:
    found = (p.grad for p in part if p.grad is not None)
    local = (g.to_local() if isinstance(g, DTensor) else g for g in found)
    return [g for g in local if g.numel()]  # of uneven shards some are empty


def _sum_of_squares(part: Iterable[nn.Parameter], like: Tensor) -> Tensor:
    gradients = _local_gradients(part)
    if not gradients:
        return like.new_zeros(())
    # in the loss's precision: the norm of a bf16 gradient would itself be rounded to bf16
    return torch.stack(torch._foreach_norm(gradients, 2, like.dtype)).square().sum()
