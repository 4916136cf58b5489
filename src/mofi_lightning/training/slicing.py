"""Batches larger than memory: encode in slices, keep only the embeddings, encode again in the backward.

The gradient is that of the unsliced batch, as in GradCache (Gao et al., arXiv 2101.06983), but as part of one
autograd graph, so that it works under automatic optimisation and FSDP2, and for any objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mofi_lightning.types import Batch, Embeddings, InputError, Tokens


def encode_in_slices(encode: Callable[[Batch], Embeddings], batch: Batch, slices: int) -> Embeddings:
    """Encode the rows of `batch` in `slices` parts, of which only the embeddings are kept for the backward.

    Args:
        encode: rows to embeddings, each row by itself; random numbers (dropout) are repeated in the backward.
        batch: B rows.
        slices: at least 1; more than B are B.
    """
    rows = len(batch["image"])
    size = -(-rows // slices)
    parts = [
        checkpoint(encode, _rows(batch, slice(start, start + size)), use_reentrant=False)
        if torch.is_grad_enabled()
        else encode(_rows(batch, slice(start, start + size)))
        for start in range(0, rows, size)
    ]
    joined = {
        field.name: None
        if getattr(parts[0], field.name) is None
        else torch.cat([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Embeddings)
    }
    return Embeddings(**joined)  # type: ignore[arg-type]


def refuse_batch_statistics(model: nn.Module, slices: int) -> None:
    """Refuse slices where a row's embedding depends on the other rows.

    Raises:
        InputError: a BatchNorm of `model` is in training mode.
    """
    for name, module in model.named_modules():
        if slices > 1 and isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"encode_slices is {slices}, but {name} is a BatchNorm, whose statistics would be those of a "
                "slice; freeze the encoder (model.freeze), choose one without BatchNorm, or set it to 1"
            )


def _rows(batch: Batch, rows: slice) -> Batch:
    part: Batch = {"image": batch["image"][rows]}
    if "text" in batch:
        part["text"] = Tokens(*(tensor[rows] for tensor in batch["text"]))
    return part
