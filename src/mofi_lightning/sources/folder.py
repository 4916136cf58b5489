"""Pairs in a folder of images with captions beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from mofi_lightning.sources.base import Entity, Pair, Source, well_formed
from mofi_lightning.types import InputError

# of the formats that are decoded
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif"})
_TABLES = ("metadata.csv", "metadata.jsonl")


class FolderSource(Source):
    """Images of a folder and its subfolders, with texts from a table or from a `.txt` beside each image.

    The table is `metadata.csv` or `metadata.jsonl` in the folder itself, with the columns file_name (relative
    to the folder) and text; an image that it leaves out has the text of `cat.txt` beside `cat.jpg`, or an
    empty one. The key of a pair is the image's path in the folder; the split is `train`. Hidden files are
    left out.

    Args:
        path: folder of images (JPEG, PNG, WebP, GIF).
        class_folders: the first folder on an image's path says what it shows; underscores are spaces.

    Raises:
        InputError: no folder or no images at `path`, or the table is damaged, repeats an image or names one
            that is not there.
    """

    def __init__(self, path: Path, class_folders: bool = False) -> None:
        if not path.is_dir():
            raise InputError(f"no folder at {path}; give a folder of images")
        self._path = path
        self._class_folders = class_folders
        self._names = sorted(_image_names(path))
        if not self._names:
            raise InputError(
                f"{path} and its subfolders hold no images; their names must end in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        self._texts = _read_table(path, set(self._names))

    def count(self, split: str) -> int:
        """Number of images."""
        return len(self._names)

    def pairs(self, split: str) -> Iterator[Pair]:
        """The images, in the order of their paths."""
        for name in self._names:
            image = self._path / name
            text = self._texts[name] if name in self._texts else _caption(image)
            entity = self._entity(name) if self._class_folders else None
            yield Pair(well_formed(name), image.read_bytes(), well_formed(text), entity)

    def _entity(self, name: str) -> Entity | None:
        folder, slash, _ = well_formed(name).partition("/")
        return Entity(folder, folder.replace("_", " ")) if slash else None


def _image_names(path: Path) -> Iterator[str]:
    for file in path.rglob("*"):
        relative = file.relative_to(path)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file():
            yield relative.as_posix()


def _caption(image: Path) -> str:
    caption = image.with_suffix(".txt")
    try:
        return caption.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise InputError(f"{caption} is not UTF-8 text ({error}); convert it") from error


def _read_table(path: Path, images: set[str]) -> dict[str, str]:
    """Texts of the folder's table by image; empty where there is no table."""
    tables = [path / name for name in _TABLES if (path / name).is_file()]
    if not tables:
        return {}
    if len(tables) > 1:
        raise InputError(f"{path} has both {' and '.join(_TABLES)}; remove one")
    (table,) = tables
    texts: dict[str, str] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines) if table.suffix == ".csv" else _json_lines(lines)
            for number, row in enumerate(rows, 1):
                file_name, text = _fields(row, f"row {number} of {table}")
                if file_name in texts:
                    raise InputError(f"{table} names {file_name!r} twice; an image has one text")
                if file_name not in images:
                    raise InputError(
                        f"row {number} of {table} names {file_name!r}, which is no image in {path}; "
                        "remove the row or bring the image"
                    )
                texts[file_name] = text
    except InputError:
        raise
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(
            f"{table} cannot be read after row {len(texts)} ({error}); write it anew, in UTF-8"
        ) from error
    return texts


def _json_lines(lines: Iterable[str]) -> Iterator[object]:
    return (json.loads(line) for line in lines if not line.isspace())


def _fields(row: object, where: str) -> tuple[str, str]:
    """The image's path in the folder, normalised, and its text; a missing text is empty."""
    if not isinstance(row, dict) or not {"file_name", "text"} <= row.keys():
        found = ", ".join(map(str, row)) if isinstance(row, dict) else row
        raise InputError(f"{where} must have the fields file_name and text, but has {found}")
    if None in row:  # where csv puts the cells that no column is for
        raise InputError(f"{where} has more cells than the header; put texts with commas in quotes")
    file_name, text = row["file_name"], row["text"]
    if not isinstance(file_name, str) or not isinstance(text, str | None):
        raise InputError(
            f"{where} must have strings as file_name and text, but has {file_name!r} and {text!r}"
        )
    return PurePosixPath(file_name).as_posix(), text or ""
