"""Floating-point operations of the encoders, counted on tensors without memory."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.types import InputError


def image_flops(model: DualEncoder) -> int:
    """Operations of the forward pass of one image, a multiply-add counted as two.

    Products of matrices and convolutions count, attention over all pairs of tokens; a training step takes
    three times as many (Kaplan et al., arXiv 2001.08361, section 2.1).

    Args:
        model: whose configuration is read; its weights may be anywhere, sharded or compiled.
    """
    size = model.preprocess.size
    with torch.device("meta"):
        twin = _twin(model)
        image = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin.image(image)
    return int(counter.get_total_flops())


def text_flops(model: DualEncoder, tokens: int) -> int:
    """Operations of the forward pass of one text of `tokens` tokens, counted as `image_flops` does.

    Args:
        model: whose configuration is read.
        tokens: of the text with its padding; at most the context length.

    Raises:
        InputError: the model has no text encoder.
    """
    with torch.device("meta"):
        text = _twin(model).text
        if text is None:
            raise InputError("this model has no text encoder; build it with `text`")
        ids = torch.empty(1, tokens, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        text(ids, ids)
    return int(counter.get_total_flops())


def _twin(model: DualEncoder) -> DualEncoder:
    """The same model before it was sharded, checkpointed or compiled: these hide or repeat operations."""
    return DualEncoder.from_config(model.config, model.tokenizer).eval()
