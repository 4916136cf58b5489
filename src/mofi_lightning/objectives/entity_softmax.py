"""MOFI's supervised objective: softmax over the entities of the data set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from mofi_lightning.distributed import (
    gather,
    gather_labels,
    rank,
    sample_classes,
    scale_gradient,
    sharded_cross_entropy,
    sharded_top1,
    world_size,
)
from mofi_lightning.functional import MarginForm, margin_statistics, row_wise_adagrad_
from mofi_lightning.objectives.base import Objective
from mofi_lightning.objectives.table_start import label_rows, random_rows
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_SPREAD = 0.1  # of the centres of an entity around its vector


class EntitySoftmax(Objective):
    """Cosine softmax with a margin over a table of entity vectors (MOFI, arXiv 2306.07952).

    The margin is CosFace's (arXiv 1801.09414) or ArcFace's (arXiv 1801.07698). An entity may have several
    centres; its cosine is then the largest of theirs (sub-centre ArcFace, Deng et al., ECCV 2020).

    Unlabelled rows contribute nothing; the loss is the mean over the labelled rows of the global batch. The
    table is no optimizer's parameter but a buffer, split by entities over all ranks: `forward` takes the
    step's rows as a leaf, `after_optimizer_step` updates only those by row-wise Adagrad. So with
    `num_sampled` the work and the gradient of a step do not grow with the number of entities. The logits
    never exist as a whole. Requires 'entity'.

    In eval mode nothing is updated or counted, and the sampled classes are those of draw 0, the same in every
    validation, so that losses compare along a run and with training, whose number of classes is the same.

    Args:
        spec: what the objective is built from; its vocabulary gives the number of entities.
        margin: m >= 0, taken off the target's cosine (cosface) or added to its angle in radians (arcface).
        scale: s, inverse temperature.
        form: of the margin.
        sub_centers: centres an entity; with several, some may take its wrongly labelled images.
        num_sampled: classes of a step (all labels of the global batch, the others uniform); all entities if
            null.
        learning_rate: the table's own peak rate; it follows the schedule of the optimizer.
        seed: of the table's start and of the sampled classes.
        label_vectors: parquet file of the entities' vectors in the embedding space, from which the rows start
            instead of at random: `mofi vectors --model` of a model whose image tower this run starts from.

    Attributes:
        table: `[C, S, D]`, the S centres of every entity; on several ranks a DTensor sharded by entities.
        second_moment: `[C, S]`, Adagrad's accumulator, sharded alike.
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
        form: MarginForm = "cosface",
        sub_centers: int = 1,
        num_sampled: int | None = None,
        learning_rate: float = 0.1,
        seed: int = 1,
        label_vectors: str | None = None,
    ) -> None:
        super().__init__()
        if not spec.vocabulary:
            raise InputError(
                "objective EntitySoftmax needs entities, which the data lacks; train on an I2E data set"
            )
        _check(margin, scale, form, sub_centers, num_sampled)
        self.num_classes = len(spec.vocabulary)
        self.margin = margin
        self.scale = scale
        self.form = form
        self.num_sampled = num_sampled or self.num_classes
        self.learning_rate = learning_rate
        self.seed = seed
        self.label_vectors = label_vectors
        own = self.own_rows()
        table = random_rows(seed, (self.num_classes, sub_centers, spec.embed_dim), own)
        if label_vectors is not None:
            # several centres must differ, or all would get the same gradient for ever
            table.mul_(_SPREAD if sub_centers > 1 else 0)
            for rows, vectors in label_rows(Path(label_vectors), spec.vocabulary.ids, own, spec.embed_dim):
                table[rows] += vectors[:, None].to(table)
        self.register_buffer("table", table)
        self.register_buffer("second_moment", torch.zeros(len(own), sub_centers))
        self.register_buffer("draws", torch.zeros(1, dtype=torch.int64))
        self._pending: tuple[Tensor | None, Tensor] | None = None  # the step's local ids and rows
        self._updated: Tensor | None = None  # how many of this rank's entities were; counted when needed

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the accuracy without margin among the step's classes.

        Also logs which share of the entities took part (`classes`), and the rows of which share had been
        updated before this step (`coverage`); logged as means over an interval, `coverage` lags half of one.
        """
        if self.training:
            self._pending = None  # of a step that was skipped
        # the ranks' gradients of the features are parts of one sum, and data parallelism takes their mean
        features = scale_gradient(gather(embeddings.image), world_size())
        labels = gather_labels(batch["entity"])
        labelled = labels >= 0
        features, labels = features[labelled], labels[labelled]
        ids, target = self._classes(labels)
        rows = self._rows(ids)
        found = margin_statistics(features, rows, target, self.margin, self.scale, self.form)
        losses = sharded_cross_entropy(found.logsumexp, found.target_logit)
        correct = sharded_top1(found.target_cosine, found.largest_cosine)
        # every rank holds all rows of the batch here, so these means are global already
        count = max(len(labels), 1)
        part = world_size() / self.num_classes  # of an own entity in the mean over ranks
        if self._updated is None:
            self._updated = _num_updated(_local(self.second_moment), None)
        logs = {
            "accuracy": correct.sum() / count,
            "classes": losses.new_full((), len(rows) * part),
            "coverage": (self._updated * part).to(losses),
        }
        return ObjectiveOutput(losses.sum() / count, logs)

    def shard(self, mesh: DeviceMesh) -> None:
        """Make table and second moment DTensors of which this rank holds its rows."""
        own = self.own_rows()
        for name in ("table", "second_moment"):
            whole = getattr(self, name)
            # built before the process group, it is whole; built after, it holds this rank's rows already
            local = whole if len(whole) == len(own) else whole[own.start : own.stop].clone()
            size = torch.Size([self.num_classes, *local.shape[1:]])
            stride = torch.empty(size, device="meta").stride()
            local = local.to(mesh.device_type)
            local = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=size, stride=stride)
            setattr(self, name, local)

    @torch.no_grad()
    def after_optimizer_step(self, lr_factor: float) -> None:
        """Update the table's rows that took part in the step."""
        if self._pending is None:
            return
        (ids, rows), self._pending = self._pending, None
        if rows.grad is not None:
            table, second_moment = _local(self.table), _local(self.second_moment)
            before = _num_updated(second_moment, ids)
            row_wise_adagrad_(table, second_moment, ids, rows.grad, self.learning_rate * lr_factor)
            if self._updated is not None:
                self._updated = self._updated + (_num_updated(second_moment, ids) - before)

    def own_rows(self) -> range:
        """The entities whose rows this rank holds."""
        # torch's Shard(0): equal shares rounded up, the last ranks may have fewer or none
        share = math.ceil(self.num_classes / world_size())
        start = min(rank() * share, self.num_classes)
        return range(start, min(start + share, self.num_classes))

    def _classes(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """The step's classes and where the labels `[N]` stand among them, both within this rank's rows.

        The classes are int64 `[K]`, or None for all rows; a label that another rank holds has position -1.
        """
        own = self.own_rows()
        if self.num_sampled >= self.num_classes:
            held = (labels >= own.start) & (labels < own.stop)
            return None, torch.where(held, labels - own.start, -1)
        if self.training:
            self.draws += 1
        draw = int(self.draws) if self.training else 0
        ids, target = sample_classes(self.seed, draw, labels, self.num_classes, self.num_sampled)
        held = (ids >= own.start) & (ids < own.stop)
        position = torch.where(held, held.cumsum(0) - 1, -1)
        return ids[held] - own.start, position[target]

    def _rows(self, ids: Tensor | None) -> Tensor:
        """The table's rows `ids` as `[K, S, D]`; in training a leaf that waits for `after_optimizer_step`."""
        if world_size() > 1 and not isinstance(self.table, DTensor):
            raise RuntimeError("EntitySoftmax on several ranks: call shard(mesh) before forward")
        table = _local(self.table)
        rows = table.detach() if ids is None else table.index_select(0, ids)
        if self.training and torch.is_grad_enabled():
            rows.requires_grad_()
            self._pending = (ids, rows)
        return rows


def _check(margin: float, scale: float, form: str, sub_centers: int, num_sampled: int | None) -> None:
    if form not in get_args(MarginForm):
        raise InputError(f"form is {form!r}; there are {' and '.join(get_args(MarginForm))}")
    largest = math.pi if form == "arcface" else math.inf
    if not 0 <= margin < largest:
        raise InputError(f"margin is {margin}; give a number of at least 0 (for arcface radians, below pi)")
    if not 0 < scale < math.inf:
        raise InputError(f"scale is {scale}; it must be positive")
    if sub_centers < 1:
        raise InputError(f"sub_centers is {sub_centers}; give a positive number")
    if num_sampled is not None and num_sampled < 1:
        raise InputError(f"num_sampled is {num_sampled}; give a positive number, or null for all entities")


def _num_updated(second_moment: Tensor, ids: Tensor | None) -> Tensor:
    rows = second_moment if ids is None else second_moment.index_select(0, ids)
    return rows.any(1).sum()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
