"""Files of images for tests, and what Pillow makes of them."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def with_pillow(data: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        return torch.from_numpy((np.array(image) >> 8).astype(np.uint8)).expand(3, -1, -1)
    image = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return torch.from_numpy(np.array(Image.alpha_composite(white, image).convert("RGB"))).permute(2, 0, 1)
