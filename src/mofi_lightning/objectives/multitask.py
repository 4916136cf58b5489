"""Several objectives on one set of embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mofi_lightning.objectives.base import Objective, ObjectiveFactory
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from mofi_lightning.encoders.label_space import LabelSpace


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that goes linearly from `start` to `end`.

    Attributes:
        start: weight until the step `begin`.
        end: weight from the step `begin + steps` on.
        steps: optimizer steps from one to the other.
        begin: first step of the change.
    """

    start: float
    end: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.begin < 0:
            raise InputError(
                f"a weight schedule has steps {self.steps} and begin {self.begin}; give at least 1 and 0"
            )

    def __call__(self, step: Tensor) -> Tensor:
        """The weight at `step` (int64, counted from 0), of the same shape."""
        progress = ((step - self.begin) / self.steps).clamp(0, 1)
        return self.start + (self.end - self.start) * progress


class MultiTask(Objective):
    """Weighted sum of named objectives; requires what any of them does.

    Args:
        spec: what the objectives are built from.
        objectives: by name.
        weights: of every objective, by the same names, each a number or a schedule; 1 each if left out.

    Attributes:
        steps: int64 `[1]`, optimizer steps so far, which the schedules follow.
    """

    steps: Tensor

    def __init__(
        self,
        spec: ObjectiveSpec,
        objectives: dict[str, ObjectiveFactory],
        weights: dict[str, float | WeightSchedule] | None = None,
    ) -> None:
        super().__init__()
        wrong = [name for name in objectives if not name.isidentifier() or hasattr(nn.ModuleDict, name)]
        if wrong or not objectives:
            raise InputError(
                f"objective name {wrong[0]!r} of MultiTask is taken or no identifier; choose another"
                if wrong
                else "MultiTask has no objectives; give at least one"
            )
        if weights is not None and weights.keys() != objectives.keys():
            raise InputError(
                f"weights name {', '.join(sorted(weights))} but the objectives are "
                f"{', '.join(sorted(objectives))}; give every objective one weight, or leave the weights out"
            )
        for name, weight in (weights or {}).items():
            if not isinstance(weight, WeightSchedule) and not math.isfinite(weight):
                raise InputError(f"the weight of objective {name!r} is {weight}; give a finite number")
        self.objectives = nn.ModuleDict({name: make(spec) for name, make in objectives.items()})
        self.weights: dict[str, float | WeightSchedule] = (
            dict.fromkeys(objectives, 1.0) if weights is None else dict(weights)
        )
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        self.requires = frozenset().union(*(part.requires for part in self._parts().values()))

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Weighted sum of the losses; logs each one's loss, logs and scheduled weight as `name/...`."""
        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for name, part in self._parts().items():
            output: ObjectiveOutput = part(embeddings, batch)
            weight = self.weights[name]
            if isinstance(weight, WeightSchedule):
                scheduled = logs[f"{name}/weight"] = weight(self.steps).squeeze(0)
                losses.append(scheduled * output.loss)
            else:
                losses.append(weight * output.loss)
            logs[f"{name}/loss"] = output.loss.detach()
            logs |= {f"{name}/{key}": value for key, value in output.logs.items()}
        return ObjectiveOutput(torch.stack(losses).sum(), logs)

    def shard(self, mesh: DeviceMesh) -> None:
        """Let every objective split itself over `mesh`."""
        for part in self._parts().values():
            part.shard(mesh)

    def after_optimizer_step(self, lr_factor: float) -> None:
        """Let every objective update what no optimizer holds."""
        for part in self._parts().values():
            part.after_optimizer_step(lr_factor)
        self.steps += 1

    def label_space(self) -> LabelSpace | None:
        """That of the first objective that has one."""
        spaces = (part.label_space() for part in self._parts().values())
        return next((space for space in spaces if space is not None), None)

    def _parts(self) -> dict[str, Objective]:
        return dict(self.objectives.items())  # type: ignore[arg-type]
