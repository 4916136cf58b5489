"""MOFI's supervised objective: softmax over the entities of the data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from mofi_lightning.distributed import (
    counted_generator,
    gather,
    gather_labels,
    rank,
    sample_classes,
    scale_gradient,
    sharded_cross_entropy,
    sharded_top1,
    world_size,
)
from mofi_lightning.functional import cosface_logits, row_wise_adagrad_
from mofi_lightning.objectives.base import Objective
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_BLOCK = 65_536


class EntitySoftmax(Objective):
    """Cosine softmax with a margin over a table of entity vectors (MOFI, arXiv 2306.07952; CosFace's form).

    Unlabelled rows contribute nothing; the loss is the mean over the labelled rows of the global batch. The
    table is no optimizer's parameter but a buffer, split by rows over all ranks: `forward` takes the step's
    rows as a leaf, `after_optimizer_step` updates only those by row-wise Adagrad. So with `num_sampled` the
    work and the gradient of a step do not grow with the number of entities. Requires 'entity'.

    In eval mode nothing is updated or counted, and the sampled classes are those of draw 0, the same in every
    validation, so that losses compare along a run and with training, whose number of classes is the same.

    Args:
        spec: what the objective is built from; its vocabulary gives the number of entities.
        margin: m, taken off the target's cosine.
        scale: s, inverse temperature.
        num_sampled: classes of a step (all labels of the global batch, the others uniform); all entities if
            null.
        learning_rate: the table's own peak rate; it follows the schedule of the optimizer.
        seed: of the table's start and of the sampled classes.

    Attributes:
        table: `[C, D]`; on several ranks a DTensor sharded by rows.
        second_moment: `[C]`, Adagrad's accumulator, sharded alike.
        draws: int64 `[1]`, training steps that have sampled so far.
    """

    requires = frozenset({"entity"})
    table: Tensor
    second_moment: Tensor
    draws: Tensor

    def __init__(
        self,
        spec: ObjectiveSpec,
        margin: float = 0.15,
        scale: float = 32.0,
        num_sampled: int | None = None,
        learning_rate: float = 0.1,
        seed: int = 1,
    ) -> None:
        super().__init__()
        if not spec.vocabulary:
            raise InputError(
                "objective EntitySoftmax needs entities, which the data lacks; train on an I2E data set"
            )
        if num_sampled is not None and num_sampled < 1:
            raise InputError(
                f"num_sampled is {num_sampled}; give a positive number, or null for all entities"
            )
        self.num_classes = len(spec.vocabulary)
        self.margin = margin
        self.scale = scale
        self.num_sampled = num_sampled or self.num_classes
        self.learning_rate = learning_rate
        self.seed = seed
        own = self._own_rows()
        self.register_buffer("table", _initial_rows(seed, self.num_classes, own, spec.embed_dim))
        self.register_buffer("second_moment", torch.zeros(len(own)))
        self.register_buffer("draws", torch.zeros(1, dtype=torch.int64))
        self._pending: tuple[Tensor, Tensor] | None = None  # the step's local ids and rows

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the accuracy without margin among the step's classes."""
        # the ranks' gradients of the features are parts of one sum, and data parallelism takes their mean
        features = scale_gradient(gather(embeddings.image), world_size())
        labels = gather_labels(batch["entity"])
        ids = self._classes(labels)
        rows = self._rows(ids)
        cosine = features @ F.normalize(rows, dim=1).T
        target = _positions(labels, ids + self._own_rows().start)
        losses = sharded_cross_entropy(cosface_logits(cosine, target, self.margin, self.scale), target)
        labelled = labels >= 0
        # every rank holds all rows here, so this mean is global already
        count = labelled.sum().clamp(min=1)
        loss = torch.where(labelled, losses, torch.zeros_like(losses)).sum() / count
        accuracy = (sharded_top1(cosine.detach(), target) & labelled).sum() / count
        return ObjectiveOutput(loss, {"accuracy": accuracy})

    def shard(self, mesh: DeviceMesh) -> None:
        """Make table and second moment DTensors of which this rank holds its rows."""
        own = self._own_rows()
        for name in ("table", "second_moment"):
            whole = getattr(self, name)
            # built before the process group, it is whole; built after, it holds this rank's rows already
            local = whole if len(whole) == len(own) else whole[own.start : own.stop].clone()
            size = torch.Size([self.num_classes, *local.shape[1:]])
            stride = torch.empty(size, device="meta").stride()
            local = local.to(mesh.device_type)
            setattr(
                self,
                name,
                DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=size, stride=stride),
            )

    @torch.no_grad()
    def after_optimizer_step(self, lr_factor: float) -> None:
        """Update the table's rows that took part in the step."""
        if self._pending is None:
            return
        (ids, rows), self._pending = self._pending, None
        if rows.grad is not None:
            table, second_moment = _local(self.table), _local(self.second_moment)
            row_wise_adagrad_(table, second_moment, ids, rows.grad, self.learning_rate * lr_factor)

    def _own_rows(self) -> range:
        # torch's Shard(0): equal shares rounded up, the last ranks may have fewer or none
        share = math.ceil(self.num_classes / world_size())
        start = min(rank() * share, self.num_classes)
        return range(start, min(start + share, self.num_classes))

    def _classes(self, labels: Tensor) -> Tensor:
        """Positions, within this rank's rows, of the step's classes: int64 `[K]`, ascending."""
        own = self._own_rows()
        if self.num_sampled >= self.num_classes:
            return torch.arange(len(own), device=labels.device)
        if self.training:
            self.draws += 1
        draw = int(self.draws) if self.training else 0
        ids = sample_classes(self.seed, draw, labels, self.num_classes, self.num_sampled)
        return (ids[(ids >= own.start) & (ids < own.stop)] - own.start).to(labels.device)

    def _rows(self, ids: Tensor) -> Tensor:
        """The table's rows `ids` as `[K, D]`; in training a leaf that waits for `after_optimizer_step`."""
        if world_size() > 1 and not isinstance(self.table, DTensor):
            raise RuntimeError("EntitySoftmax on several ranks: call shard(mesh) before forward")
        table = _local(self.table)
        rows = table.detach() if len(ids) == len(table) else table[ids]
        if self.training and torch.is_grad_enabled():
            rows.requires_grad_()
            self._pending = (ids, rows)
        return rows

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}table")
        if saved is not None and len(saved) != self.num_classes:
            raise InputError(
                f"the checkpoint's table has {len(saved)} entities and the data set {self.num_classes}; "
                "resume with the data set the run began with"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _initial_rows(seed: int, num_classes: int, own: range, dim: int) -> Tensor:
    """The rows `own` of the table at its start, about unit norm, the same however the table is split."""
    table = torch.empty(len(own), dim)
    for first in range(own.start - own.start % _BLOCK, own.stop, _BLOCK):
        block = range(first, min(first + _BLOCK, num_classes))
        generator = counted_generator(seed, first // _BLOCK)
        values = torch.randn(len(block), dim, generator=generator, device="cpu", dtype=torch.float32)
        start, stop = max(own.start, block.start), min(own.stop, block.stop)
        table[start - own.start : stop - own.start] = values[start - first : stop - first] / math.sqrt(dim)
    return table


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _positions(labels: Tensor, ids: Tensor) -> Tensor:
    """Where the labels `[N]` stand among the ascending `ids` `[K]`; -1 for those that do not."""
    if not len(ids):
        return torch.full_like(labels, -1)
    position = torch.searchsorted(ids, labels).clamp(max=len(ids) - 1)
    return torch.where(ids[position] == labels, position, -1)
