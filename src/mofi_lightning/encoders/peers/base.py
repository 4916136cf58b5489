"""What models of other libraries have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from mofi_lightning.encoders.preprocess import LONGEST_SIDE as LONGEST_SIDE


class PeerEncoder(nn.Module, ABC):
    """A model of another library.

    Attributes:
        text: what embeds texts.
        label_space: None.
    """

    label_space = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def text(self) -> nn.Module:
        """The module that embeds texts: these models hold both towers in one."""
        return self.model

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.model.parameters()).device

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """Bring uint8 `[3, H, W]` to the float `[3, H', W']` that the model takes, normalised."""

    def encode_image(self, image: Tensor) -> Tensor:
        """Preprocessed images `[B, 3, H', W']` to L2-normalised fp32 `[B, D]`."""
        return self.encode_image_and_features(image)[0]

    @abstractmethod
    def encode_image_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings, and fp32 `[B, F]` before the projection; these are the embeddings without one."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts, cut to what the model takes, to L2-normalised fp32 `[B, D]`."""


def without_ends(image: Tensor) -> Tensor:
    """The middle of a long strip `[3, H, W]`, as `Preprocess` takes it where the shorter side is scaled.

    A strip of 4 x 60,000 pixels would become one of 224 x 3.4 million, of which the centre is kept anyway.
    """
    limit = LONGEST_SIDE * min(image.shape[-2:])
    if max(image.shape[-2:]) <= limit:
        return image
    height, width = (min(length, limit) for length in image.shape[-2:])
    return transforms.center_crop(image, [height, width])


def normalised(embedding: Tensor) -> Tensor:
    """Unit vectors, fp32."""
    return functional.normalize(embedding.float(), dim=-1)


def one_line(error: Exception) -> str:
    """The start of what another library says."""
    return " ".join(str(error).split())[:200]
