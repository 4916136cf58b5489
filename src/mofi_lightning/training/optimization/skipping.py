"""Steps that are skipped because their loss or gradient is not finite: their count, and what they leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mofi_lightning.types import InputError


class SkippedSteps:
    """How many steps of a run were skipped, and its end where too many are, one after the other.

    A run that is resumed counts on, and so ends where the undisturbed run would.

    Args:
        most: steps in a row that may be skipped; the next one ends the run.

    Attributes:
        count: steps of the run that were skipped.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise InputError(f"max_skipped_steps is {most}; give 0 or more")
        self.most = most
        self.count = 0
        self._in_a_row = 0
        self._last_good = 0
        self._step = 0

    def record(self, step: int, finite: bool) -> None:
        """Note the outcome of `step`, counted from 1."""
        self._step = step
        if finite:
            self._last_good, self._in_a_row = step, 0
        else:
            self.count += 1
            self._in_a_row += 1

    @property
    def too_many(self) -> bool:
        """Whether more than `most` steps in a row were skipped, up to the last one."""
        return self._in_a_row > self.most

    def end_the_run(self) -> NoReturn:
        """Say that there were too many.

        Raises:
            InputError: always.
        """
        good = f"the last good step was {self._last_good}" if self._last_good else "no step before was good"
        raise InputError(
            f"loss or gradient was not finite at step {self._step} and in all of the {self._in_a_row} steps "
            f"up to it (model.max_skipped_steps is {self.most}); {good}, and the weights are as it left "
            "them. Lower model.optimization.lr, clip gradients (trainer.gradient_clip_val) or look at "
            "the data"
        )

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"count": self.count, "in_a_row": self._in_a_row, "last_good": self._last_good}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from `state_dict()`."""
        self.count = int(state["count"])
        self._in_a_row = int(state["in_a_row"])
        self._last_good = int(state["last_good"])


class BatchStatistics:
    """The running statistics of a model's BatchNorms as they were before the step.

    They are taken in by the forward, so that a batch that is skipped would stay in them for good.

    Args:
        model: its frozen BatchNorms, which are in eval mode, are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._running = [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.training
            for buffer in module.buffers(recurse=False)
        ]
        self._kept: list[Tensor] = [buffer.clone() for buffer in self._running]

    def keep(self) -> None:
        """Remember them."""
        for kept, running in zip(self._kept, self._running, strict=True):
            kept.copy_(running)

    @torch.no_grad()
    def restore(self) -> None:
        """Let them be as they were kept."""
        for kept, running in zip(self._kept, self._running, strict=True):
            running.copy_(kept)
