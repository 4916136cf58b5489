"""Collectives that keep the loss on W ranks equal to the loss on one; without a process group, W is 1."""

from mofi_lightning.distributed.class_sampling import counted_generator, sample_classes
from mofi_lightning.distributed.collectives import (
    all_reduce,
    all_reduce_logsumexp,
    gather,
    gather_labels,
    global_mean,
    rank,
    scale_gradient,
    world_size,
)
from mofi_lightning.distributed.cross_entropy import sharded_cross_entropy, sharded_top1

__all__ = [
    "all_reduce",
    "all_reduce_logsumexp",
    "counted_generator",
    "gather",
    "gather_labels",
    "global_mean",
    "rank",
    "sample_classes",
    "scale_gradient",
    "sharded_cross_entropy",
    "sharded_top1",
    "world_size",
]
