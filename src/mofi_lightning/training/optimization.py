"""AdamW with the usual groups, and the learning-rate schedule by steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from mofi_lightning.types import InputError


@dataclass(frozen=True)
class Optimization:
    """AdamW with linear warm-up and cosine decay, counted in steps.

    Attributes:
        lr: peak learning rate.
        weight_decay: of weight matrices; gains, biases and scales are never decayed (CLIP).
        betas: of AdamW.
        eps: of AdamW.
        warmup_steps: steps from 0 to the peak.
        final_lr_share: share of the peak at the last step, 0..1.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    warmup_steps: int = 100
    final_lr_share: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"optimization.lr is {self.lr}; it must be positive")
        if not 0 <= self.final_lr_share <= 1:
            raise InputError(f"optimization.final_lr_share is {self.final_lr_share}; it must be in 0..1")

    def optimizer(self, modules: Iterable[nn.Module]) -> torch.optim.AdamW:
        """AdamW over the trainable parameters of `modules`, in two groups: decayed and not."""
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("every parameter is frozen; freeze less")
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], self.lr, self.betas, self.eps)

    def lr_factor(self, step: int, max_steps: int) -> float:
        """Share of the peak learning rate at `step` (0-based): linear warm-up, then half a cosine."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_lr_share + (1 - self.final_lr_share) * cosine
