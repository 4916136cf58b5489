"""Encoded image files to pixels."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from mofi_lightning.types import InputError

_MOST_SCANS = 100  # encoders write about ten
_BAND = 512  # rows
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
# what torch, Pillow and libjpeg say of memory in errors of other kinds
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "insufficient memory")


class UndecodableImage(InputError):
    """The bytes are no image that can be read, or one with too many pixels; the message is `KIND: why`."""


def fault_kinds(messages: Iterable[str]) -> dict[str, int]:
    """How often each kind of fault occurs in messages of `UndecodableImage`, most frequent first."""
    return dict(Counter(message.partition(":")[0] for message in messages).most_common())


def decode(data: bytes, max_pixels: int = 89_478_485) -> Tensor:
    """Decode a JPEG, PNG, GIF or WebP file to RGB.

    The EXIF orientation is applied, transparency is composited on white, 16-bit channels keep their high
    byte, and an animation gives its first frame. Pillow reads the header, so that the size is known before
    anything is decoded.

    Args:
        data: the encoded file.
        max_pixels: the most pixels (height x width) the image may have; the default is Pillow's.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        UndecodableImage: not an image, truncated, of another format, with more than `max_pixels`, or a JPEG
            of more than 100 scans.
        MemoryError: memory is short, which says nothing about the image.
    """
    try:
        header = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise UndecodableImage(f"image with too many pixels: {error}") from error
    except Exception as error:  # Pillow's parsers raise many kinds on damaged headers
        _raise_if_memory_is_short(error)
        raise UndecodableImage(f"no JPEG, PNG, GIF or WebP image: {len(data):,} bytes") from error
    width, height = header.size
    if width * height > max_pixels:
        raise UndecodableImage(
            f"image with too many pixels: {height} x {width}, more than the {max_pixels:,} allowed"
        )
    if header.format in ("JPEG", "MPO") and not _in_one_scan(data, header) and _scans(data) > _MOST_SCANS:
        raise UndecodableImage(
            f"image with too many scans: more than {_MOST_SCANS}, each of which takes the time of an image"
        )
    try:
        pixels = _with_torchvision(data, header) if _is_fast(header) else _with_pillow(header)
    except Exception as error:  # as above, for the body of the file
        _raise_if_memory_is_short(error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UndecodableImage(
            f"damaged {header.format} image: {reason} ({height} x {width} pixels)"
        ) from error
    return _on_white(pixels)


def from_pillow(image: Image.Image) -> Tensor:
    """Pixels uint8 `[3, H, W]` of a Pillow image, as `decode` makes them of its file."""
    return _on_white(_with_pillow(image))


def _raise_if_memory_is_short(error: Exception) -> None:
    if isinstance(error, MemoryError):
        raise error
    if any(words in str(error).lower() for words in _NO_MEMORY):
        raise MemoryError(str(error).strip().partition("\n")[0]) from error


def _in_one_scan(data: bytes, header: Image.Image) -> bool:
    """Whether the first scan of a JPEG holds all there is, as nearly always: a decoder reads no other."""
    position = 2
    while (marker := data[position : position + 2]) != b"\xff\xda" and marker[:1] == b"\xff":
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    components = data[position + 4 : position + 5]
    return not header.info.get("progressive") and components == bytes([len(header.getbands())])


def _scans(data: bytes) -> int:
    return data.count(b"\xff\xda")


def _is_fast(header: Image.Image) -> bool:
    """Whether torchvision, twice as fast, reads the file as Pillow does.

    Its PNG decoder ends the process on a damaged file; it has no first frame of a WebP, nor its orientation.
    """
    if header.format == "WEBP":
        return not getattr(header, "is_animated", False) and "exif" not in header.info
    return header.format in ("JPEG", "MPO")


def _with_torchvision(data: bytes, header: Image.Image) -> Tensor:
    mode = ImageReadMode.RGB_ALPHA if header.mode == "RGBA" else ImageReadMode.RGB
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy, because bytes are read-only
    return decode_image(encoded, mode=mode, apply_exif_orientation=True)


def _with_pillow(header: Image.Image) -> Tensor:
    image = ImageOps.exif_transpose(header)
    if image.mode.startswith("I;16"):
        return (functional.pil_to_tensor(image).int() >> 8).to(torch.uint8).expand(3, -1, -1)
    return functional.pil_to_tensor(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _on_white(pixels: Tensor) -> Tensor:
    if pixels.shape[0] == 3:
        return pixels
    result = torch.empty_like(pixels[:3])
    for band in range(
        0, pixels.shape[1], _BAND
    ):  # 32-bit numbers of a large image whole would take gigabytes
        colour, alpha = pixels[:, band : band + _BAND].int().split([3, 1])
        result[:, band : band + _BAND] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return result
