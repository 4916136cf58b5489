"""Metrics of the steps, kept as they come and reduced only when they are logged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from mofi_lightning.distributed import world_size

_MOST = 256  # steps kept one by one


class StepMetrics:
    """Collects scalars of each step on their device; means over steps and ranks when they are asked for.

    A step costs one small kernel and neither a transfer nor a collective, `means` one collective; memory does
    not grow with the steps between two calls. A name may be missing in some steps: its mean is over those
    that have it. All ranks bring the same names in the same steps. Nothing is saved: the first means after a
    resume are over the steps since then.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[str, ...], list[Tensor]] = {}  # by names; one value a name
        self._sums: dict[str, tuple[Tensor, int]] = {}  # over earlier steps, and how many
        self._newest: tuple[str, ...] = ()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Keep copies of the `values` of a step, each a tensor of one element."""
        self._newest = tuple(values)
        steps = self._steps.setdefault(self._newest, [])
        if len(steps) == _MOST:
            self._fold()
            steps = self._steps.setdefault(self._newest, [])
        steps.append(_joined(values))

    def discard(self) -> None:
        """Forget the step that was added last, because it was not taken."""
        self._steps[self._newest].pop()

    def newest(self, name: str) -> float | None:
        """This rank's value of the step that was added last, if it is not yet in the means."""
        steps = self._steps.get(self._newest)
        if not steps or name not in self._newest:
            return None
        return float(steps[-1][self._newest.index(name)])

    def means(self) -> dict[str, float]:
        """Means since the last call, over the steps and the ranks; all ranks must call."""
        self._fold()
        if not self._sums:
            return {}
        means = torch.stack([total / steps for total, steps in self._sums.values()])
        if world_size() > 1:
            dist.all_reduce(means)
            means /= world_size()
        names = list(self._sums)
        self._sums = {}
        return dict(zip(names, means.tolist(), strict=True))

    def _fold(self) -> None:
        for names, steps in self._steps.items():
            if not steps:
                continue
            totals = torch.stack(steps).sum(0)
            for name, total in zip(names, totals.unbind(), strict=True):
                earlier, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + earlier, count + len(steps))
        self._steps = {}


def _joined(values: Mapping[str, Tensor]) -> Tensor:
    """A tensor of their own: a value may be a view of a parameter, which the optimizer will change."""
    device = next(iter(values.values())).device
    parts = [v if v.dim() == 0 and v.device == device else v.reshape(()).to(device) for v in values.values()]
    joined = torch.stack(parts).detach()
    return joined if joined.dtype == torch.float64 else joined.float()
