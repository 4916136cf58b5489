"""The floor every encoder must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError


class RawPixels:
    """The image at 16 x 16 pixels, minus its mean, as its embedding."""

    preprocess = Preprocess(size=16, resize="squash", interpolation="bilinear")
    text = None
    label_space: LabelSpace | None = None

    def encode_image(self, image: Tensor) -> Tensor:
        """Images `[B, 3, 16, 16]` to `[B, 768]`."""
        flat = image.flatten(1).float()
        return F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Pixels cannot embed text."""
        raise InputError("raw pixels have no text tower")
