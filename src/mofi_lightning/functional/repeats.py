"""Which rows of a batch show the same thing, so that a contrastive loss does not push them apart."""

from __future__ import annotations

import torch
from torch import Tensor

# steps of splitmix64 (Steele et al., OOPSLA 2014), as signed numbers: products of int64 wrap around
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def text_hash(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """64 bits a text, equal for equal texts however they are padded; others collide once in 2^64 pairs.

    Args:
        input_ids: int64 `[B, L]`, ids below 2^32.
        attention_mask: `[B, L]`, not 0 for a token, 0 for padding on either side.

    Returns:
        int64 `[B]`.
    """
    token = attention_mask != 0
    position = token.cumsum(1)
    return torch.where(token, _mix(input_ids + (position << 32)), 0).sum(1)


def repeat_groups(entity: Tensor | None = None, text: Tensor | None = None) -> Tensor | None:
    """Groups of rows that are connected through rows of the same entity or the same text.

    Being a repeat is made transitive: a text that rows of two entities share joins the rows of both.

    Args:
        entity: int64 `[M]`, -1 for none.
        text: int64 `[M]`, equal for equal texts, as of `text_hash`.

    Returns:
        int64 `[M]`: the position of the first row of the row's group. None without any label.

    >>> repeat_groups(torch.tensor([7, -1, 7, -1]), torch.tensor([5, 6, 6, 4])).tolist()
    [0, 0, 0, 3]
    """
    if entity is not None:
        entity = torch.where(entity >= 0, entity, -1 - torch.arange(len(entity), device=entity.device))
    parts = [labels.unique(return_inverse=True)[1] for labels in (entity, text) if labels is not None]
    if not parts:
        return None
    first = torch.arange(len(parts[0]), device=parts[0].device)
    while True:  # until the smallest position has gone along every chain: a few turns
        before = first
        for part in parts:
            first = torch.full_like(first, len(first)).scatter_reduce(0, part, first, "amin")[part]
        if torch.equal(first, before):
            return first


def _mix(x: Tensor) -> Tensor:
    """Finalizer of splitmix64: a bijection of int64 every bit of which depends on every bit of `x`."""
    x = x * _INCREMENT
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ _shift_right(x, shift)) * multiplier
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift that brings in zeros; torch's brings in copies of the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
