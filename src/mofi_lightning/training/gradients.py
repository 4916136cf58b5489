"""Norms of the gradients, and what they decide: how far to clip, and whether to take the step at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    """

    def __init__(self, parts: Mapping[str, Iterable[nn.Parameter]], replicas: int = 1) -> None:
        self._parts = {name: [p for p in part if p.requires_grad] for name, part in parts.items()}
        self._parts = {name: part for name, part in self._parts.items() if part}
        self._replicas = replicas if world_size() > 1 else 1
        self.norms: dict[str, float] = {}
        self.total = 0.0

    @torch.no_grad()
    def measure(self, loss: Tensor) -> None:
        """Take the norms; a loss of any rank that is not finite makes `total` so on all ranks."""
        squares = [_sum_of_squares(part).to(loss) for part in self._parts.values()]
        # an infinite loss may have finite gradients: 0 * loss is nan
        stacked = torch.stack([*squares, (loss * 0).reshape(())])
        if world_size() > 1:
            dist.all_reduce(stacked)
        *values, fault = stacked.tolist()
        values = [value / self._replicas for value in values]
        self.norms = {name: math.sqrt(value) for name, value in zip(self._parts, values, strict=True)}
        self.total = math.sqrt(sum(values)) + fault

    @property
    def finite(self) -> bool:
        """Whether loss and gradients of the step are, on all ranks."""
        return math.isfinite(self.total)

    @torch.no_grad()
    def clip(self, max_norm: float) -> None:
        """Scale all gradients so that their total norm is at most `max_norm`, as torch's `clip_grad_norm_`."""
        factor = max_norm / (self.total + 1e-6)
        if factor < 1:
            for part in self._parts.values():
                torch._foreach_mul_(_local_gradients(part), factor)

    def drop(self) -> None:
        """Forget the gradients: the optimizer then changes nothing, not even its own state."""
        for part in self._parts.values():
            for parameter in part:
                parameter.grad = None


def _local_gradients(part: Iterable[nn.Parameter]) -> list[Tensor]:
    found = (p.grad for p in part if p.grad is not None)
    return [g.to_local() if isinstance(g, DTensor) else g for g in found]


def _sum_of_squares(part: Iterable[nn.Parameter]) -> Tensor:
    gradients = [g for g in _local_gradients(part) if g.numel()]
    if not gradients:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(gradients)).square().sum()
