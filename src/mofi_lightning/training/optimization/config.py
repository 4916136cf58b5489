"""The optimizer over named groups of parameters, and the learning-rate schedule by steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mofi_lightning.training.optimization.optimizers import adamw, checked, keep_settings
from mofi_lightning.training.optimization.schedules import Schedule, StepSchedule, check_schedule, lr_factor
from mofi_lightning.training.patterns import matching
from mofi_lightning.types import InputError

_BETAS, _EPS = (0.9, 0.98), 1e-8  # CLIP's for ViTs, but for eps (1e-6)


@dataclass(frozen=True)
class Optimization:
    """An optimizer, by default AdamW, and a schedule counted in steps.

    A run that is resumed takes the optimizer's moments from the checkpoint and everything here from its own
    configuration.

    Attributes:
        lr: peak learning rate.
        weight_decay: of weight matrices; gains, biases and scales are never decayed (CLIP).
        betas: of AdamW.
        eps: of AdamW.
        optimizer: another class of `torch.optim` or elsewhere, by class_path; its learning rate and weight
            decay are those above. Null for AdamW, fused where the parameters allow it.
        schedule: after the warm-up 'cosine' falls to the end along half a cosine, 'rsqrt' with the inverse
            square root of the step (from warmup_steps on), 'constant' stays.
        warmup_steps: steps from 0 to the peak.
        cooldown_steps: the last steps, in which rsqrt and constant fall linearly to the end.
        final_lr_share: share of the peak at the end, 0..1; of rsqrt and constant by a cooldown only.
        layer_decay: factor of the learning rate from one block of an encoder to the one before it (BEiT,
            arXiv 2106.08254); 1 for none. Projections and objective keep the full rate.
        rates: factors of the learning rate by shell pattern of parameter names, such as
            {'model.text.*': 0.1}.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = _BETAS
    eps: float = _EPS
    optimizer: Callable[[Iterable[Any]], Optimizer] | None = None
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    cooldown_steps: int = 0
    final_lr_share: float = 0.0
    layer_decay: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (
            ("lr", self.lr),
            *((f"rates[{n!r}]", factor) for n, factor in self.rates.items()),
        ):
            if not 0 < value < math.inf:
                raise InputError(
                    f"optimization.{name} is {value}; it must be positive (to keep parameters as they are, "
                    "set model.freeze)"
                )
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"optimization.weight_decay is {self.weight_decay}; give 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                f"optimization.layer_decay is {self.layer_decay}; it must be above 0 and at most 1"
            )
        if self.optimizer is None:
            if not all(0 <= beta < 1 for beta in self.betas):
                raise InputError(
                    f"optimization.betas are {self.betas}; give shares of at least 0 and below 1"
                )
            if not self.eps > 0:
                raise InputError(f"optimization.eps is {self.eps}; it must be positive")
        elif (tuple(self.betas), self.eps) != (_BETAS, _EPS):
            raise InputError(
                "optimization.betas and eps are AdamW's; those of another optimizer are set as its own, such "
                "as --model.optimization.optimizer.betas"
            )
        check_schedule(self.schedule, self.warmup_steps, self.cooldown_steps, self.final_lr_share)

    def build(self, parameters: Mapping[str, nn.Parameter], depths: Mapping[str, int]) -> Optimizer:
        """The optimizer over the trainable ones of `parameters`.

        Args:
            parameters: by name.
            depths: blocks from the end of its encoder, as `block_depths` counts them, by name; 0 where it is
                left out.

        Raises:
            InputError: all are frozen, a pattern of `rates` matches nothing that is trained, or the optimizer
                does not work.
        """
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if not trained:
            raise InputError("every parameter is frozen; freeze less")
        factors = self._factors(parameters, trained, depths)
        groups = self._groups(trained, factors)
        if self.optimizer is None:
            optimizer = adamw(groups, self.lr, self.betas, self.eps)
        else:
            optimizer = checked(self.optimizer, groups, self.lr, self.weight_decay)
        keep_settings(optimizer)
        return optimizer

    def scheduled(self, optimizer: Optimizer, max_steps: int) -> StepSchedule:
        """The schedule of `optimizer`'s rates over a run of `max_steps`.

        Raises:
            InputError: the run is too short for warm-up and cooldown.
        """
        if self.cooldown_steps and self.warmup_steps + self.cooldown_steps > max_steps:
            raise InputError(
                f"optimization.warmup_steps {self.warmup_steps} and cooldown_steps {self.cooldown_steps} are "
                f"more than trainer.max_steps {max_steps}; shorten them or lengthen the run"
            )
        return StepSchedule(optimizer, lambda step: self.lr_factor(step, max_steps))

    def lr_factor(self, step: int, max_steps: int) -> float:
        """Share of the peak learning rate at `step` (0-based) of `max_steps`."""
        return lr_factor(
            step, max_steps, self.schedule, self.warmup_steps, self.cooldown_steps, self.final_lr_share
        )

    def _factors(
        self, names: Iterable[str], trained: Iterable[str], depths: Mapping[str, int]
    ) -> dict[str, float]:
        """Factors of the learning rate of those that are trained."""
        factors = {name: self.layer_decay ** depths.get(name, 0) for name in trained}
        for pattern, factor in self.rates.items():
            found = [n for n in matching(names, pattern, "optimization.rates") if n in factors]
            if not found:
                raise InputError(
                    f"optimization.rates pattern {pattern!r} matches only frozen parameters (model.freeze, "
                    "or a text tower that the objective does not use); leave it out or train them"
                )
            for name in found:
                factors[name] *= factor
        return factors

    def _groups(
        self, trained: Mapping[str, nn.Parameter], factors: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in trained.items():
            decays = parameter.ndim >= 2
            # nine digits: products that differ by rounding are one group
            key = f"{factors[name]:.9g}{'' if decays else ' undecayed'}"
            settings = {
                "name": key,
                "params": [],
                "lr": self.lr * float(f"{factors[name]:.9g}"),
                "weight_decay": self.weight_decay if decays else 0.0,
            }
            groups.setdefault(key, settings)["params"].append(parameter)
        return list(groups.values())
