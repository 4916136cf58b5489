"""Small pictures for pages, whatever the encoded files hold."""

from __future__ import annotations

import base64
from html import escape

from torch import Tensor
from torchvision.io import encode_jpeg
from torchvision.transforms.v2 import functional

from mofi_lightning.encoders.decoding import UndecodableImage, decode
from mofi_lightning.pages import exposed

_MOST_OF_A_REASON = 400


def picture(data: bytes, side: int, alt: str = "") -> tuple[str, str]:
    """An encoded image, or why it cannot be decoded, as HTML, and its size in words.

    Args:
        data: the encoded file.
        side: the most pixels of the longer side; smaller images keep their size.
        alt: what the picture shows, as plain text; empty where the text around it says so.
    """
    size = f"{len(data):,} bytes"
    try:
        image = decode(data)
    except UndecodableImage as error:
        return f'<div class="picture bad">{escape(exposed(str(error), _MOST_OF_A_REASON))}</div>', size
    height, width = image.shape[1:]
    uri = "data:image/jpeg;base64," + base64.b64encode(_thumbnail(image, side)).decode()
    img = f'<img src="{uri}" alt="{escape(alt)}">'
    return f'<div class="picture">{img}</div>', f"{width} x {height} pixels, {size}"


def _thumbnail(image: Tensor, side: int) -> bytes:
    """A JPEG of an image, uint8 `[3, H, W]`, whose longer side has `side` pixels at most."""
    height, width = image.shape[1:]
    scale = min(1.0, side / max(height, width))
    if scale < 1:
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = functional.resize(image, size, antialias=True)
    return encode_jpeg(image.contiguous(), quality=80).numpy().tobytes()
