"""Memory, communication and time of a training run from rehearsed steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.training.module import PretrainingModule
from mofi_lightning.training.planning.flops import image_flops, text_flops
from mofi_lightning.training.planning.rehearsal import Rehearsal, Step
from mofi_lightning.training.planning.weightless import Weightless, pretended_ranks
from mofi_lightning.types import InputError, Vocabulary

FARTHEST = 128  # times the planned batch: larger ones are not looked for, which would take long
USABLE = 0.9  # of a GPU's memory: the rest goes to CUDA, NCCL, kernels' workspaces and fragmentation


@dataclass(frozen=True)
class Cluster:
    """What trains.

    Attributes:
        gpus: one process on each.
        gpus_per_node: GPUs of a machine.
        gpu_memory: of one GPU, in GB of 1e9 bytes.
        tflops: peak of one GPU in bf16, in 1e12 operations a second.
        mfu: share of that peak which training reaches, recomputation not counted.
    """

    gpus: int
    gpus_per_node: int
    gpu_memory: float
    tflops: float
    mfu: float

    def __post_init__(self) -> None:
        for option, value in (("gpus", self.gpus), ("gpus-per-node", self.gpus_per_node)):
            if value < 1:
                raise InputError(f"--{option} is {value}; give a positive number")
        for option, amount in (("gpu-memory", self.gpu_memory), ("tflops", self.tflops)):
            if not 0 < amount < math.inf:
                raise InputError(f"--{option} is {amount:g}; give a positive number")
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu is {self.mfu:g}; give a share above 0 and at most 1, such as 0.4")


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        cluster: what it was planned for.
        replicas: copies of the parameters.
        batch: rows of the global batch.
        max_steps: of the run.
        step: a step of rank 0, which holds the most.
        largest_batch: the largest global batch that fits, by rehearsal; 0 for none.
        row_flops: operations of the encoders' forward pass of one row.
    """

    cluster: Cluster
    replicas: int
    batch: int
    max_steps: int
    step: Step
    largest_batch: int
    row_flops: int

    @property
    def peak(self) -> int:
        """Bytes alive on a GPU when most are."""
        return self.step.peak.total()

    @property
    def images_per_second(self) -> float:
        """At the cluster's MFU, all GPUs together."""
        return self.cluster.mfu * self.cluster.tflops * 1e12 * self.cluster.gpus / (3 * self.row_flops)

    @property
    def days(self) -> float:
        """For all steps."""
        return self.max_steps * self.batch / self.images_per_second / 86_400


def estimate(
    module: PretrainingModule,
    vocabulary: Vocabulary | None,
    tokenizer: Tokenizer | None,
    cluster: Cluster,
    replicas: int,
    batch: int,
    bf16: bool,
    clip: float | None,
    max_steps: int,
) -> Plan:
    """Plan the training of `module`.

    Args:
        module: not yet configured.
        vocabulary: gives the number of entities.
        tokenizer: gives the number of token ids.
        cluster: what trains.
        replicas: copies of the parameters, a divisor of the number of GPUs.
        batch: rows of the global batch.
        bf16: whether the encoders compute in bf16.
        clip: the largest norm of the gradient, or None.
        max_steps: of the run.

    Raises:
        InputError: the batch cannot be split over the GPUs, or the model cannot be built.
    """
    world = cluster.gpus
    if batch < 1 or batch % world:
        raise InputError(f"a batch of {batch} rows cannot be split over --gpus {world}; give a multiple")
    with pretended_ranks(world), Weightless() as mode:
        rehearsal = Rehearsal(module, vocabulary, tokenizer, mode, world, replicas, bf16, clip)
        step = rehearsal.take(batch // world)
        budget = int(USABLE * cluster.gpu_memory * 1e9)
        rows = largest_rows(
            lambda n: rehearsal.take(n).peak.total(), batch // world, step.peak.total(), budget
        )
    model = module.model
    row_flops = image_flops(model)
    if model.text is not None and module.objective.requires & {"text", "text_tokens"}:
        row_flops += text_flops(model, model.text.encoder.context_length)
    return Plan(cluster, replicas, batch, max_steps, step, rows * world, row_flops)


def largest_rows(peak: Callable[[int], int], rows: int, bytes_of_rows: int, budget: int) -> int:
    """The most rows of a rank whose step stays within `budget`, at most 128 times `rows`; 0 for none.

    Bytes grow nearly linearly with the rows. A line through two sizes leads to a third beside the answer, and
    the line through the two that are nearest to the budget to the answer itself.

    Args:
        peak: bytes of a step of so many rows.
        rows: a size whose peak is known.
        bytes_of_rows: that peak.
        budget: bytes.
    """
    other = max(1, rows // 4) if rows > 1 else 2
    points = {rows: bytes_of_rows, other: peak(other)}
    most = FARTHEST * rows
    beside = min(_on_line(points, budget), most)
    if beside >= 1 and beside not in points:
        points[beside] = peak(beside)
    return max(0, min(_on_line(points, budget), most))


def _on_line(points: dict[int, int], budget: int) -> int:
    """Where the line through the two points that are nearest to the budget meets it, in whole rows."""
    low, high = sorted(sorted(points, key=lambda n: abs(points[n] - budget))[:2])
    slope = (points[high] - points[low]) / (high - low)
    return _whole(low + (budget - points[low]) / slope)


def _whole(rows: float) -> int:
    """Rounded down to a multiple of 8 from 8 on, of which matrix units are made."""
    return int(rows) // 8 * 8 if rows >= 8 else math.floor(rows)
