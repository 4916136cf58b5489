"""Counts the steps that were skipped because their loss or gradient was not finite."""

from __future__ import annotations

from mofi_lightning.types import InputError


class SkippedSteps:
    """How many steps were skipped, and the end of a run in which too many are, one after the other.

    Args:
        most: steps in a row that may be skipped; the next one ends the run.

    Attributes:
        count: steps skipped by this process so far.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise InputError(f"max_skipped_steps is {most}; give 0 or more")
        self.most = most
        self.count = 0
        self._last_good: int | None = None
        self._in_a_row = 0

    def record(self, step: int, finite: bool) -> None:
        """Note the outcome of `step`, counted from 1.

        Raises:
            InputError: too many steps in a row.
        """
        if finite:
            self._last_good, self._in_a_row = step, 0
            return
        self.count += 1
        self._in_a_row += 1
        if self._in_a_row > self.most:
            good = (
                f"the last good step was {self._last_good}" if self._last_good else "no step before was good"
            )
            raise InputError(
                f"loss or gradient was not finite at step {step} and in all of the {self._in_a_row} steps up to it "
                f"(model.max_skipped_steps is {self.most}); {good}, and the weights are as it left them. Lower "
                "model.optimization.lr, clip gradients (trainer.gradient_clip_val) or look into the data"
            )
