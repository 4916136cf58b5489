"""The update rule of tables too large for an optimizer's dense state."""

from __future__ import annotations

import torch
from torch import Tensor

from mofi_lightning.functional.chunks import chunk_entries


@torch.no_grad()
def row_wise_adagrad_(
    table: Tensor,
    second_moment: Tensor,
    ids: Tensor | None,
    gradient: Tensor,
    learning_rate: float,
    eps: float = 1e-10,
) -> None:
    """One step of row-wise Adagrad, in place, on some rows of `table` or on all.

    Adagrad (Duchi et al., JMLR 2011) with one accumulator a row, the mean square of the row's gradient: `1
    / D` of the state, and rows without gradient are not touched. Chunk by chunk: what it needs beyond its
    arguments does not grow with them.

    Args:
        table: `[C, ..., D]`.
        second_moment: `[C, ...]`, sum over steps of the mean square.
        ids: int64 `[K]`, distinct; None for all rows in order, K = C.
        gradient: `[K, ..., D]`, of these rows.
        learning_rate: of this step.
        eps: keeps a row that never had a gradient at rest.
    """
    size = max(1, chunk_entries(table.device) // table[:1].numel()) if len(table) else 1
    for start in range(0, len(gradient), size):
        chunk = slice(start, start + size)
        part = gradient[chunk]
        mean_square = torch.linalg.vector_norm(part, dim=-1).square_().div_(part.shape[-1])
        if ids is None:
            root = second_moment[chunk].add_(mean_square).sqrt().add_(eps)
            table[chunk].addcdiv_(part, root[..., None], value=-learning_rate)
        else:
            accumulated = second_moment[ids[chunk]].add_(mean_square)
            second_moment[ids[chunk]] = accumulated
            root = accumulated.sqrt().add_(eps)
            table.index_add_(0, ids[chunk], part / root[..., None], alpha=-learning_rate)
