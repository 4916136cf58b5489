"""The text encoder: CLIP's causal transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from mofi_lightning.encoders.base import EncoderOutput, TextEncoder
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder; the defaults are a small one that trains on a CPU.

    Attributes:
        width: of the features, F'.
        layers: transformer blocks.
        heads: attention heads; a divisor of `width`.
        context_length: the most tokens a text may have, begin and end included.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    context_length: int = 32


class CLIPTextEncoder(TextEncoder):
    """`transformers.CLIPTextModel` (Radford et al. 2021, section 2.4) built from a `TextConfig`.

    Attention is causal and texts are padded on the right, so no token sees padding and no mask is needed.

    Args:
        config: the shape.
        tokenizer: gives the vocabulary's size and the special ids.

    Raises:
        InputError: `width` is no multiple of `heads`.
    """

    def __init__(self, config: TextConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.width % config.heads:
            raise InputError(f"text width {config.width} is no multiple of its {config.heads} heads")
        self.feature_dim = config.width
        self.context_length = config.context_length
        self.model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.context_length,
                hidden_act="gelu",
                bos_token_id=tokenizer.bos_id,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.pad_id,
            )
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: bool = False) -> EncoderOutput:
        """Features of the end-of-text token `[B, F']`, which is each text's last one."""
        # positions are given, because the model's own buffer of them is empty after materialising from meta
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.model(input_ids=input_ids, position_ids=positions).last_hidden_state
        end = attention_mask.sum(1) - 1
        features = hidden[torch.arange(len(hidden), device=hidden.device), end]
        return EncoderOutput(features, hidden, attention_mask) if tokens else EncoderOutput(features)
