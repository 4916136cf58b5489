"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import math


def lr_factor(
    step: int, max_steps: int, schedule: str, warmup_steps: int, cooldown_steps: int, final_share: float
) -> float:
    """Share of the peak learning rate at `step`.

    Args:
        step: 0-based.
        max_steps: length of the run.
        schedule: 'cosine', 'rsqrt' or 'constant'.
        warmup_steps: linear from 0 to the peak.
        cooldown_steps: the last steps of rsqrt and constant, linear to the end.
        final_share: of the peak, at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return final_share + (1 - final_share) * cosine
    start = max(warmup_steps, max_steps - cooldown_steps)
    factor = _before_cooldown(min(step, start), schedule, warmup_steps)
    if cooldown_steps and step > start:
        progress = min(1.0, (step - start) / max(1, max_steps - start))
        factor += (min(final_share, factor) - factor) * progress
    return factor


def _before_cooldown(step: int, schedule: str, warmup_steps: int) -> float:
    if schedule == "constant":
        return 1.0
    return math.sqrt(max(1, warmup_steps) / max(1, warmup_steps, step))
