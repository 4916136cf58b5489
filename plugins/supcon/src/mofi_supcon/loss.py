"""The supervised contrastive loss as pure functions, without ranks.

With unit rows z, temperature T, the positives P(i) of an anchor i and all other labelled rows A(i), equation
2 of Khosla et al. (arXiv 2004.11362) is `logsumexp_{a in A(i)}(z_i.z_a / T) - z_i.(mean_{p in P(i)} z_p)
/ T`. Only the log-sum-exp needs all pairs; the rest is one product with the mean of the positives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def supcon(
    anchors: Tensor, rows: Tensor, entity: Tensor, first: int, temperature: float, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Loss of each anchor, L_out of equation 2, and which rows are anchors.

    Args:
        anchors: `[N, D]`, L2-normalised, a block of the batch's rows.
        rows: `[M, D]`, L2-normalised, the whole batch.
        entity: int64 `[M]`, -1 for rows that take no part, neither as anchor, positive nor negative.
        first: position of the first row of `anchors` within `rows`.
        temperature: T, above 0.
        chunk_size: anchors whose similarities with all rows exist at a time.

    Returns:
        `[N]` losses, without meaning where `[N]` bool is false: the row has no label, or no other row of the
        batch has the same.
    """
    mine = slice(first, first + len(anchors))
    positive, count = other_positives(rows, entity)
    log_denominator = torch.cat(
        [
            checkpoint(
                _logsumexp_of_others,
                anchors[start : start + chunk_size] / temperature,
                rows,
                entity,
                first + start,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, len(anchors), chunk_size)
        ]
    )
    losses = log_denominator - (anchors * positive[mine]).sum(1) / temperature
    return losses, count[mine] > 0


def other_positives(rows: Tensor, entity: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the other rows `[M, D]` of a row's entity, zero where there is none, and their number `[M]`."""
    labelled = entity >= 0
    _, group = torch.where(labelled, entity, -1).unique(return_inverse=True)
    total = torch.zeros_like(rows).index_add(0, group, rows)
    count = torch.where(labelled, torch.bincount(group, minlength=len(rows))[group] - 1, 0)
    mean = (total[group] - rows) / count.clamp(min=1).to(rows.dtype)[:, None]
    return torch.where((count > 0)[:, None], mean, torch.zeros_like(mean)), count


def _logsumexp_of_others(scaled: Tensor, rows: Tensor, entity: Tensor, first: int) -> Tensor:
    """Log-sum-exp of the products of `scaled` `[n, D]` with all labelled rows but the row itself: `[n]`."""
    logits = scaled @ rows.T
    column = torch.arange(len(rows), device=rows.device)
    itself = column == first + torch.arange(len(scaled), device=rows.device)[:, None]
    return logits.masked_fill(itself | (entity < 0), -torch.inf).logsumexp(1)
