"""The size of an encoded image without decoding it."""

from __future__ import annotations

import io
import warnings

from PIL import ExifTags, Image

_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
# orientations of EXIF that lay the image on its side
_TURNED = {5, 6, 7, 8}


def image_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that `encoders.decoding.decode` would give, from the file's header.

    Returns:
        None where there is no header of an image that `decode` reads.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of an image with very many pixels
            header = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = header.size
            turned = _orientation(header, data) in _TURNED
    except Exception:  # Pillow's parsers raise many kinds on damaged headers
        return None
    return (width, height) if turned else (height, width)


def _orientation(header: Image.Image, data: bytes) -> int:
    if header.format in ("JPEG", "MPO"):
        exif = Image.Exif()
        exif.load(header.info.get("exif", b""))
    elif header.format == "PNG" and b"eXIf" not in data and b"Raw profile type" not in data:
        return 1  # Pillow would read all pixels to look for it behind them
    else:
        exif = header.getexif()
    return int(exif.get(ExifTags.Base.Orientation, 1))
