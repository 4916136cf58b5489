"""Towers: an encoder and the bias-free projection into the shared space.

A tower is what sharding wraps, so it is only ever used through its call.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mofi_lightning.encoders.base import EncoderOutput, ImageEncoder, TextEncoder
from mofi_lightning.encoders.preprocess import Preprocess


class TowerOutput(NamedTuple):
    """What a tower makes of B inputs.

    Attributes:
        embedding: `[B, D]`, projected, not yet normalised.
        features: `[B, F]`, before the projection.
        tokens: `[B, T, F]`, when asked for.
        tokens_mask: `[B, T]`, 1 where `tokens` is a token.
    """

    embedding: Tensor
    features: Tensor
    tokens: Tensor | None = None
    tokens_mask: Tensor | None = None


class ImageTower(nn.Module):
    """Images in 0..255 or 0..1 to embeddings; normalises with the encoder's mean and std.

    Args:
        encoder: the image encoder.
        embed_dim: D; None for the encoder's features themselves, without a projection.
        preprocess: gives mean and standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ImageEncoder, embed_dim: int | None, preprocess: Preprocess) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Identity() if embed_dim is None else _projection(encoder.feature_dim, embed_dim)
        # kept in the state, so that loading it also restores a tower materialised from the meta device
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1))

    def forward(self, image: Tensor, tokens: bool = False) -> TowerOutput:
        """Encode `image` `[B, 3, H, W]`, uint8 in 0..255 or floating point in 0..1."""
        pixels = image if image.is_floating_point() else image.to(self.mean.dtype) / 255
        # cast last: under sharding the weights are bf16 here, and only floating inputs would have been cast
        dtype = next(self.encoder.parameters()).dtype
        # channels last: what convolutions are fastest on
        pixels = ((pixels - self.mean) / self.std).to(dtype=dtype, memory_format=torch.channels_last)
        return _project(self.encoder(pixels, tokens), self.projection)


class TextTower(nn.Module):
    """Token ids to embeddings.

    Args:
        encoder: the text encoder.
        embed_dim: D.
    """

    def __init__(self, encoder: TextEncoder, embed_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = _projection(encoder.feature_dim, embed_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: bool = False) -> TowerOutput:
        """Encode `input_ids`, `attention_mask` `[B, L]`."""
        return _project(self.encoder(input_ids, attention_mask, tokens), self.projection)


def _projection(feature_dim: int, embed_dim: int) -> nn.Linear:
    projection = nn.Linear(feature_dim, embed_dim, bias=False)
    nn.init.normal_(projection.weight, std=feature_dim**-0.5)  # as CLIP does
    return projection


def _project(output: EncoderOutput, projection: nn.Module) -> TowerOutput:
    return TowerOutput(projection(output.features), output.features, output.tokens, output.tokens_mask)
