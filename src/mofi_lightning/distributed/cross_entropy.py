"""Softmax cross-entropy and accuracy whose classes are spread over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mofi_lightning.distributed.collectives import all_reduce, all_reduce_logsumexp, world_size


def sharded_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy `[N]` of the same N rows on every rank, each rank holding some of the classes.

    No rank ever sees the logits of another: the log-sum-exp and the target's logit are all-reduced (Partial
    FC, arXiv 2203.15565, section 3). All ranks get the same values; each gets the gradient of its own
    logits only, so what lies before the logits and is shared by all ranks needs `scale_gradient(...,
    world_size())`.

    Args:
        logits: `[N, K]`, this rank's K classes, possibly none.
        target: int64 `[N]`, position of the row's class among this rank's, -1 where another rank (or, for an
            unlabelled row, none) holds it.
    """
    return all_reduce_logsumexp(logits.logsumexp(1)) - _target_logits(logits, target)


@torch.no_grad()
def sharded_top1(logits: Tensor, target: Tensor) -> Tensor:
    """Whether no class of any rank has a higher logit than a row's target: bool `[N]`.

    Args:
        logits: `[N, K]`, this rank's K classes, possibly none.
        target: as in `sharded_cross_entropy`.
    """
    best = logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
    if world_size() > 1:
        dist.all_reduce(best, dist.ReduceOp.MAX)
    return _target_logits(logits, target) >= best


def _target_logits(logits: Tensor, target: Tensor) -> Tensor:
    if not logits.shape[1]:
        return all_reduce(logits.sum(1))  # zeros that are part of the graph
    own = logits.gather(1, target.clamp(min=0)[:, None]).squeeze(1)
    return all_reduce(torch.where(target >= 0, own, torch.zeros_like(own)))
