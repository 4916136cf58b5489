"""Learning rates as functions of the step: of nothing that a checkpoint would have to carry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mofi_lightning.types import InputError

Schedule = Literal["cosine", "rsqrt", "constant"]


def lr_factor(
    step: int,
    max_steps: int,
    schedule: Schedule,
    warmup_steps: int,
    cooldown_steps: int,
    final_lr_share: float,
) -> float:
    """Share of the peak learning rate at `step`.

    The warm-up rises in equal parts to 1 at its last step, none of which is 0. Then 'cosine' falls to the end
    (Loshchilov and Hutter, arXiv 1608.03983, without restarts), 'rsqrt' as `sqrt(warmup_steps / step)` (Zhai
    et al., arXiv 2106.04560), 'constant' not at all; the cooldown of these two is linear.

    Args:
        step: 0-based.
        max_steps: length of the run, at which the factor would be `final_lr_share`.
        schedule: what follows the warm-up.
        warmup_steps: the first steps.
        cooldown_steps: the last steps, of rsqrt and constant.
        final_lr_share: where cosine and cooldown end; a cooldown that starts below it stays where it is.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        fallen = 0.5 - 0.5 * math.cos(math.pi * _progress(step, warmup_steps, max_steps))
        return 1 + (final_lr_share - 1) * fallen
    start = max_steps - cooldown_steps
    factor = 1.0 if schedule == "constant" else math.sqrt(warmup_steps / max(warmup_steps, min(step, start)))
    return factor + (min(final_lr_share, factor) - factor) * _progress(step, start, max_steps)


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0, step - start) / max(1, end - start))


def check_schedule(schedule: Schedule, warmup_steps: int, cooldown_steps: int, final_lr_share: float) -> None:
    """Refuse a schedule that makes no sense for a run of any length.

    Raises:
        InputError: a value is out of range, or has no effect with the others.
    """
    for name, steps in (("warmup_steps", warmup_steps), ("cooldown_steps", cooldown_steps)):
        if steps < 0:
            raise InputError(f"optimization.{name} is {steps}; give 0 or more")
    if not 0 <= final_lr_share <= 1:
        raise InputError(f"optimization.final_lr_share is {final_lr_share}; it must be in 0..1")
    if schedule == "rsqrt" and not warmup_steps:
        raise InputError(
            "optimization.schedule 'rsqrt' falls as sqrt(warmup_steps / step), and warmup_steps is 0; give "
            "at least 1"
        )
    if schedule == "cosine" and cooldown_steps:
        raise InputError(
            f"optimization.cooldown_steps is {cooldown_steps}, but 'cosine' falls to the end by itself; "
            "leave it out, or set schedule: constant or rsqrt"
        )
    if schedule != "cosine" and final_lr_share and not cooldown_steps:
        raise InputError(
            f"optimization.final_lr_share is {final_lr_share}, but {schedule!r} reaches it only by a "
            "cooldown; set cooldown_steps, or leave it out"
        )


class StepSchedule(LRScheduler):
    """Sets each group's rate to its own peak times `factor(step)`.

    From a checkpoint it takes the step and nothing else: where a run is resumed with another peak, schedule
    or length, these hold from the next step on, as if they had from the start.

    Args:
        optimizer: its groups' `lr` are the peaks.
        factor: share of the peak by step.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Rates of the groups at the present step."""
        factor = self._factor(self.last_epoch)
        return [peak * factor for peak in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The step, and the rates for those who look into a checkpoint."""
        return {"last_epoch": self.last_epoch, "_last_lr": [float(rate) for rate in self.get_last_lr()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of `state_dict`."""
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
