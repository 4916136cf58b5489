"""Image files of folders, and keys with images for `mofi embed`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mofi_lightning.evaluation.datasets.pairs import rows
from mofi_lightning.sources.folder import IMAGE_SUFFIXES
from mofi_lightning.types import InputError


def image_files(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted."""
    return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_SUFFIXES)


def iterate_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Keys and encoded files of a pairs parquet, or of all images below a folder, in a fixed order.

    Raises:
        InputError: nothing there, or no images in it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        yield from ((str(file.relative_to(path)), file.read_bytes()) for file in files)
    elif path.suffix == ".parquet" and path.is_file():
        for key, image in rows(path, "pairs file", "key", "image"):
            yield key, image or b""
    else:
        raise InputError(f"no images at {path}; give a parquet with the columns key and image, or a folder")
