"""The geometry and statistics with which an encoder wants its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# A strip of 10 x 80,000 pixels would become one of 224 x 1.8 million: sides beyond this ratio are cut first.
LONGEST_SIDE = 16


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an encoder's input, the same in training, evaluation and export.

    The geometry runs on the decoded image; the statistics become buffers of the image tower, which
    normalises after the transfer to the device.

    Attributes:
        size: height and width of the input, pixels.
        resize: 'shortest' scales the shorter side to `size / crop`, 'squash' both sides.
        crop: share of the resized image that the centre crop keeps, 0..1.
        interpolation: of the resize.
        antialias: low-pass filter before down-scaling.
        resize_on: 'uint8' resizes the 8-bit image, 'float' converts to 0..1 first (Apple's MOFI order).
        mean: of the three channels, 0..1.
        std: of the three channels, 0..1.
    """

    size: int = 224
    resize: Literal["shortest", "squash"] = "shortest"
    crop: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    resize_on: Literal["uint8", "float"] = "uint8"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, image: Tensor) -> Tensor:
        """Resize and crop; never normalises.

        Args:
            image: uint8 `[3, H, W]`.

        Returns:
            `[3, size, size]`: uint8, or float32 around 0..1 if `resize_on` is 'float'.
        """
        if self.resize_on == "float":
            image = image.to(torch.float32) / 255  # as ToTensor does, to the bit; v2.to_dtype multiplies
        side = int(self.size / self.crop)
        if self.resize == "shortest":
            limit = LONGEST_SIDE * min(image.shape[-2:])
            if max(image.shape[-2:]) > limit:
                height, width = (min(length, limit) for length in image.shape[-2:])
                image = functional.center_crop(image, [height, width])
        image = functional.resize(
            image,
            [side] if self.resize == "shortest" else [side, side],
            interpolation=InterpolationMode(self.interpolation),
            antialias=self.antialias,
        )
        return functional.center_crop(image, [self.size, self.size])
