"""Small pictures for data sets on disk."""

import hashlib
import io
from pathlib import Path

from PIL import Image


def picture(colour: tuple[int, int, int] = (200, 30, 30), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, form)
    return file.getvalue()


def put(path: Path, content: bytes | str | None = None) -> Path:
    """Write a file, by default a picture of a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        red, green, blue = hashlib.sha256(str(path).encode()).digest()[:3]
        content = picture((red, green, blue))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
