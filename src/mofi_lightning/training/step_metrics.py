"""Metrics of the steps, kept as they come and reduced only when they are logged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from mofi_lightning.distributed import world_size

_MOST = 256  # steps kept as they are


class StepMetrics:
    """Collects scalars of each step on their device; means over steps and ranks when they are asked for.

    A step costs no kernel, no transfer and no collective.
    """

    def __init__(self) -> None:
        self._steps: list[list[Tensor]] = []
        self._names: list[str] = []
        self._folded: tuple[Tensor, int] | None = None  # sums over earlier steps, and how many

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Keep the detached 0-D or one-element `values` of a step; every step brings the same names."""
        self._names = list(values)
        self._steps.append(list(values.values()))
        if len(self._steps) >= _MOST:
            self._fold()

    def means(self) -> dict[str, float]:
        """Means since the last call, over the steps and the ranks; all ranks must call."""
        self._fold()
        if self._folded is None:
            return {}
        (total, steps), self._folded = self._folded, None
        mean = total / steps
        if world_size() > 1:
            dist.all_reduce(mean)
            mean /= world_size()
        return dict(zip(self._names, mean.tolist(), strict=True))

    def _fold(self) -> None:
        if not self._steps:
            return
        values = torch.stack([v.reshape(()).float() for step in self._steps for v in step])
        total = values.view(len(self._steps), -1).sum(0)
        earlier = self._folded or (torch.zeros_like(total), 0)
        self._folded = (total + earlier[0], len(self._steps) + earlier[1])
        self._steps = []
