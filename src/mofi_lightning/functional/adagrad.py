"""The update rule of tables too large for an optimizer's dense state."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def row_wise_adagrad_(
    table: Tensor,
    second_moment: Tensor,
    ids: Tensor,
    gradient: Tensor,
    learning_rate: float,
    eps: float = 1e-10,
) -> None:
    """One step of row-wise Adagrad, in place, on some rows of `table`.

    Adagrad (Duchi et al., JMLR 2011) with one accumulator a row, the mean square of the row's gradient: `1
    / D` of the state, and rows without gradient are not touched.

    Args:
        table: `[C, D]`.
        second_moment: `[C]`, sum over steps of the mean square.
        ids: int64 `[K]`, distinct rows.
        gradient: `[K, D]`, of these rows.
        learning_rate: of this step.
        eps: keeps a row that never had a gradient at rest.
    """
    accumulated = second_moment[ids] + gradient.pow(2).mean(1)
    second_moment[ids] = accumulated
    table.index_add_(0, ids, gradient / (accumulated.sqrt() + eps)[:, None], alpha=-learning_rate)
