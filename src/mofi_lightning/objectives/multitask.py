"""Several objectives on one set of embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mofi_lightning.objectives.base import Objective, ObjectiveFactory
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class MultiTask(Objective):
    """Weighted sum of named objectives; requires what any of them does.

    Args:
        spec: what the objectives are built from.
        objectives: by name.
        weights: of every objective, by the same names; 1 each if left out.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        objectives: dict[str, ObjectiveFactory],
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if weights is not None and weights.keys() != objectives.keys():
            raise InputError(
                f"weights name {', '.join(sorted(weights))} but the objectives are "
                f"{', '.join(sorted(objectives))}; give every objective one weight, or leave the weights out"
            )
        self.objectives = nn.ModuleDict({name: make(spec) for name, make in objectives.items()})
        self.weights = dict.fromkeys(objectives, 1.0) if weights is None else dict(weights)
        self.requires = frozenset().union(*(part.requires for part in self._parts().values()))

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Weighted sum of the losses; logs each one's loss and logs as `name/...`."""
        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for name, part in self._parts().items():
            output: ObjectiveOutput = part(embeddings, batch)
            losses.append(self.weights[name] * output.loss)
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

    def _parts(self) -> dict[str, Objective]:
        return dict(self.objectives.items())  # type: ignore[arg-type]
