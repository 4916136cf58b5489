"""Training augmentation on decoded images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from random import Random

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError

_ATTEMPTS = 10
_MAGNITUDES = 31


@dataclass(frozen=True)
class RandAugment:
    """A few operations drawn among 14: rotation, shears, translations, colour, contrast, posterize ...

    RandAugment (arXiv 1909.13719) as torchvision has it; what an operation moves in from outside is black.

    Attributes:
        num_ops: operations an image, drawn with replacement, at least 1.
        magnitude: strength of all of them, 0..30.
    """

    num_ops: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        if self.num_ops < 1:
            raise InputError(f"rand_augment num_ops must be at least 1, not {self.num_ops}")
        if not 0 <= self.magnitude < _MAGNITUDES:
            raise InputError(f"rand_augment magnitude must be in 0..{_MAGNITUDES - 1}, not {self.magnitude}")

    def __call__(self, image: Tensor, generator: Random) -> Tensor:
        """Augment one image.

        Args:
            image: `[3, H, W]`, uint8 or float in 0..1.
            generator: of the row.

        Returns:
            The same shape and number type.
        """
        # torchvision draws from torch's global generator: it is lent to the row and then put back
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.getrandbits(63))  # torch.manual_seed: CUDA's too
            return self._operations(image)

    @cached_property
    def _operations(self) -> v2.RandAugment:
        return v2.RandAugment(self.num_ops, self.magnitude, _MAGNITUDES)


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, horizontal flip, RandAugment and colour jitter, in this order.

    All draws come from the generator of the row, so torch's global generator is neither read nor advanced.

    Attributes:
        scale: smallest and largest share of the image's area that a crop covers, 0..1.
        ratio: smallest and largest width / height of a crop.
        flip: probability of a horizontal flip, 0..1.
        brightness: brightness is scaled by a factor within 1 ± this, 0..1.
        contrast: contrast is scaled by a factor within 1 ± this, 0..1.
        saturation: saturation is scaled by a factor within 1 ± this, 0..1.
        rand_augment: operations drawn among many, for instance {num_ops: 2, magnitude: 9}; null for none.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    rand_augment: RandAugment | None = None

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(
                f"augmentation scale must be two areas in 0..1, smallest first, not {self.scale}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(
                f"augmentation ratio must be two positive numbers, smallest first, not {self.ratio}"
            )
        for name in ("flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation {name} must be in 0..1, not {getattr(self, name)}")

    def __call__(self, image: Tensor, preprocess: Preprocess, generator: Random) -> Tensor:
        """Augment one image.

        Args:
            image: uint8 `[3, H, W]`.
            preprocess: gives the size, the interpolation and the number type of the result.
            generator: of the row (`data.randomness.row_generator`).

        Returns:
            `[3, size, size]`: uint8, or float32 around 0..1 if `preprocess.resize_on` is 'float'.
        """
        top, left, height, width = self.crop_box(image.shape[-2], image.shape[-1], generator)
        image = image[:, top : top + height, left : left + width]
        # torch resizes 8-bit images channels last: this copy, once, is smaller than that of what it makes
        image = image[None].contiguous(memory_format=torch.channels_last)[0]
        if preprocess.resize_on == "float":
            image = functional.to_dtype(image, torch.float32, scale=True)
        image = functional.resize(
            image,
            [preprocess.size, preprocess.size],
            interpolation=InterpolationMode(preprocess.interpolation),
            antialias=preprocess.antialias,
        )
        if generator.random() < self.flip:
            image = functional.horizontal_flip(image)
        if self.rand_augment is not None:
            if image.is_floating_point():
                image = image.clamp(0, 1)  # bicubic weights overshoot, which the operations do not expect
            image = self.rand_augment(image, generator)
        for strength, adjust in (
            (self.brightness, functional.adjust_brightness),
            (self.contrast, functional.adjust_contrast),
            (self.saturation, functional.adjust_saturation),
        ):
            if strength:
                image = adjust(image, generator.uniform(1 - strength, 1 + strength))
        return image

    def crop_box(self, height: int, width: int, generator: Random) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a crop (Inception's: area uniform, ratio log-uniform).

        Like torchvision's `RandomResizedCrop`: after ten draws that do not fit into the image, the largest
        centred crop with an allowed ratio.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_ATTEMPTS):
            area = height * width * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(low, high))
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = generator.randrange(height - crop_height + 1)
                left = generator.randrange(width - crop_width + 1)
                return top, left, crop_height, crop_width
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        crop_height = min(height, max(1, round(width / ratio)))
        crop_width = min(width, max(1, round(height * ratio)))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
