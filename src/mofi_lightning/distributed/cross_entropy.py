"""Softmax cross-entropy and accuracy whose classes are spread over the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mofi_lightning.distributed.collectives import all_reduce, all_reduce_logsumexp, world_size


def sharded_cross_entropy(logsumexp: Tensor, target_logit: Tensor) -> Tensor:
    """Cross-entropy `[N]` of the same N rows on every rank, each rank holding some of the classes.

    No rank ever sees the logits of another: the log-sum-exp and the target's logit are all-reduced (Partial
    FC, arXiv 2203.15565, section 3). All ranks get the same values; each gets the gradient of its own
    logits only, so what lies before the logits and is shared by all ranks needs `scale_gradient(...,
    world_size())`.

    Args:
        logsumexp: `[N]`, of this rank's logits; -inf where it has no classes.
        target_logit: `[N]`, of the row's class, 0 where another rank (or, for an unlabelled row, none) holds
            it.
    """
    return all_reduce_logsumexp(logsumexp) - all_reduce(target_logit)


@torch.no_grad()
def sharded_top1(target: Tensor, largest: Tensor) -> Tensor:
    """Whether no class of any rank has a higher score than a row's target: bool `[N]`.

    Args:
        target: `[N]`, score of the row's class, -inf where this rank does not hold it.
        largest: `[N]`, the largest score of this rank's classes; -inf where it has none.
    """
    scores = torch.stack([target, largest])
    if world_size() > 1:
        dist.all_reduce(scores, dist.ReduceOp.MAX)
    return scores[0] >= scores[1]
