"""The contract of objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from mofi_lightning.types import Batch, Embeddings, ObjectiveOutput, ObjectiveSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from mofi_lightning.encoders.label_space import LabelSpace


class Objective(nn.Module, ABC):
    """A loss over embeddings and labels.

    An objective never sees pixels, encoders, trainer or logger. It runs in fp32 (or fp64) with autocast
    off. On W ranks it sees its own rank's rows; the mean over ranks of the returned losses must be the loss
    of one process on the concatenated batch (`distributed.gather`, `distributed.global_mean`). Parameters
    have at least one dimension: sharding refuses 0-D ones. Subclasses take the spec first: `__init__(self,
    spec, ...)`.

    Attributes:
        requires: fields of `Batch` and `Embeddings` it cannot do without: 'text', 'entity', 'teacher',
            'image_tokens', 'text_tokens'. Checked against the data once, before training starts.
    """

    requires: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch and detached scalars to log."""

    def shard(self, mesh: DeviceMesh) -> None:
        """Split what is too large for one rank over the one-dimensional `mesh` of all ranks."""

    def after_optimizer_step(self, lr_factor: float) -> None:
        """Update what no optimizer holds; `lr_factor` is the schedule's current share of the peak rate."""

    def label_space(self) -> LabelSpace | None:
        """The space of label vectors that is exported with the model, if the objective maps images into one.

        It is a module of the objective, and is sharded with it.
        """
        return None


ObjectiveFactory = Callable[[ObjectiveSpec], Objective]
