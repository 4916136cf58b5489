"""Image files of folders: which there are, and which are left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mofi_lightning.sources.folder import IMAGE_SUFFIXES
from mofi_lightning.types import InputError

# pictures too, but of formats that are not decoded
_UNREAD_SUFFIXES = frozenset({".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".heic", ".avif", ".jfif"})


class FoundImages(NamedTuple):
    """The image files of a folder.

    Attributes:
        files: sorted by path.
        left_out: pictures of formats that are not decoded, links that lead nowhere, linked folders.
    """

    files: list[Path]
    left_out: list[Path]


def find_images(folder: Path) -> FoundImages:
    """Image files in `folder` and below.

    Hidden files and folders are no part of the data. Links to files are followed; links to folders are not,
    as they may lead round in a circle.

    Raises:
        InputError: a folder cannot be read.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    pending = [folder]
    while pending:
        place = pending.pop()
        try:
            entries = [entry for entry in os.scandir(place) if not entry.name.startswith(".")]
        except OSError as error:
            raise InputError(f"{place} cannot be read ({error.strerror}); change its permissions") from error
        for entry in entries:
            path, suffix = place / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.is_symlink() and not os.path.isfile(path):
                left_out.append(path)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif suffix in IMAGE_SUFFIXES:
                files.append(path)
            elif suffix in _UNREAD_SUFFIXES:
                left_out.append(path)
    return FoundImages(sorted(files), sorted(left_out))


def image_files(folder: Path) -> list[Path]:
    """Image files directly in `folder`, sorted; hidden files are none."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.name[0] != "." and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )


def subfolders(folder: Path) -> list[Path]:
    """Folders directly in `folder`, sorted; hidden ones are none; empty where `folder` is none."""
    if not folder.is_dir():
        return []
    return sorted(place for place in folder.iterdir() if place.name[0] != "." and place.is_dir())
