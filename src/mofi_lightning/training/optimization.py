"""The optimizer over named groups of parameters, and the learning-rate schedule by steps."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from mofi_lightning.training.schedules import lr_factor
from mofi_lightning.types import InputError

Schedule = Literal["cosine", "rsqrt", "constant"]


@dataclass(frozen=True)
class Optimization:
    """An optimizer, by default AdamW, and a schedule counted in steps.

    Attributes:
        lr: peak learning rate.
        weight_decay: of weight matrices; gains, biases and scales are never decayed (CLIP).
        betas: of AdamW.
        eps: of AdamW.
        optimizer: another class of `torch.optim` or elsewhere, by class_path; its learning rate and weight decay
            are those above. Null for AdamW, fused where the parameters allow it.
        schedule: after the warm-up 'cosine' falls to the end along half a cosine, 'rsqrt' with the inverse square
            root of the step (from warmup_steps on), 'constant' stays.
        warmup_steps: steps from 0 to the peak.
        cooldown_steps: the last steps, in which rsqrt and constant fall linearly to the end.
        final_lr_share: share of the peak at the last step, 0..1; for rsqrt and constant where there is a cooldown.
        layer_decay: factor of the learning rate from one block of an encoder to the one before it (BEiT, arXiv
            2106.08254); 1 for none.
        rates: factors of the learning rate by shell pattern of parameter names, such as {'model.text.*': 0.1}.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    cooldown_steps: int = 0
    final_lr_share: float = 0.0
    layer_decay: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise InputError(f"optimization.lr is {self.lr}; it must be positive")
        if not 0 <= self.final_lr_share <= 1:
            raise InputError(f"optimization.final_lr_share is {self.final_lr_share}; it must be in 0..1")
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                f"optimization.layer_decay is {self.layer_decay}; it must be above 0 and at most 1"
            )

    def build(self, parameters: Mapping[str, nn.Parameter], depths: Mapping[str, int]) -> Optimizer:
        """The optimizer over the trainable ones of `parameters`.

        Args:
            parameters: by name.
            depths: how many blocks of its encoder come after a parameter's, by name; 0 where it is left out.

        Raises:
            InputError: all are frozen, or a pattern of `rates` matches nothing.
        """
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if not trained:
            raise InputError("every parameter is frozen; freeze less")
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            rate = self.lr * self.layer_decay ** depths.get(name, 0)
            for pattern, factor in self.rates.items():
                rate *= factor if fnmatch.fnmatch(name, pattern) else 1
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        built = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
        if self.optimizer is not None:
            return self.optimizer(built)
        return torch.optim.AdamW(built, self.lr, self.betas, self.eps, fused=True)

    def lr_factor(self, step: int, max_steps: int) -> float:
        """Share of the peak learning rate at `step` (0-based) of `max_steps`."""
        return lr_factor(
            step, max_steps, self.schedule, self.warmup_steps, self.cooldown_steps, self.final_lr_share
        )
