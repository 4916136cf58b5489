"""Pairs in parquet files of any origin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mofi_lightning.sources.base import Pair, Source
from mofi_lightning.sources.tables import Kind, check_table, iterate
from mofi_lightning.types import InputError

_BATCH_ROWS = 64
# a part of a split, as the Hugging Face hub calls them
_PART = re.compile(r"(?P<split>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})")


class ParquetSource(Source):
    """Pairs of a parquet file, or of a folder of parquet files.

    A file is the split `train`; in a folder, each file is the split of its name. Parts of a split are read
    one after the other: `train-00000-of-00005.parquet` and so on, and as parts of `train` the files called
    by a number, as img2dataset writes them. A missing text or image (null) is empty.

    Args:
        path: parquet file, or folder of `{split}.parquet`.
        image: column of the encoded images (binary, or a struct with bytes as the Hugging Face hub has it).
        text: column of the alt-texts (string).
        key: column of the keys (string or integer), unique over all splits; default: the column `key` if all
            files have one, otherwise the split and the number of the row.

    Raises:
        InputError: nothing at `path`, a part of a split is missing, or a file is no parquet, damaged, empty,
            or lacks a column.
    """

    def __init__(self, path: Path, image: str = "image", text: str = "text", key: str | None = None) -> None:
        self._image, self._text, self._key = image, text, key
        self._files = split_files(path)
        self._rows = {split: sum(map(self._check, files)) for split, files in self._files.items()}
        if key is None and all(map(_has_keys, chain(*self._files.values()))):
            self._key = "key"

    @property
    def splits(self) -> Sequence[str]:
        """`train`, or the names of the folder's files, sorted."""
        return tuple(self._files)

    def count(self, split: str) -> int:
        """Number of rows of `split`, from the files' metadata."""
        return self._rows[split]

    def pairs(self, split: str) -> Iterator[Pair]:
        """The rows of `split`, in the order of the files."""
        # without a column of keys, the images fill its place
        columns = [self._image if self._key is None else self._key, self._image, self._text]
        row = 0
        for path in self._files[split]:
            for batch in iterate(path, columns, _BATCH_ROWS, key=self._key):
                for key, image, text in zip(*batch, strict=True):
                    if self._key is None:
                        key = f"{split}/{row}"
                    if isinstance(image, dict):
                        image = image["bytes"]
                    yield Pair(str(key), image or b"", text or "")
                    row += 1

    def _check(self, path: Path) -> int:
        """Number of rows of a file that has all columns."""
        wanted = [("image", self._image, Kind.STORED_IMAGE), ("text", self._text, Kind.TEXT)]
        if self._key is not None:
            wanted.append(("key", self._key, Kind.ANY_KEY))
        # one by one: a column may have two uses, and each must suit it
        for option, column, kind in wanted:
            way_out = f"name the right one with --{option}"
            metadata = check_table(path, "file", {column: kind}, way_out)
        return int(metadata.num_rows)


def _has_keys(path: Path) -> bool:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    return schema.names.count("key") == 1 and Kind.ANY_KEY.accepts(schema.field("key").type)


def split_files(path: Path) -> dict[str, list[Path]]:
    """Split -> files."""
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise InputError(f"nothing at {path}; give a parquet file or a folder of parquet files")
    files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise InputError(f"{path} holds no *.parquet; give a folder with one parquet file a split")
    splits: dict[str, list[Path]] = {}
    for file in files:
        part = _PART.fullmatch(file.stem)
        split = part["split"] if part else "train" if file.stem.isdecimal() else file.stem
        splits.setdefault(split, []).append(file)
    return {split: _in_order(parts) for split, parts in splits.items()}


def _in_order(parts: list[Path]) -> list[Path]:
    """The files of one split, none of them missing."""
    folder, names = parts[0].parent, [file.name for file in parts]
    if all(file.stem.isdecimal() for file in parts):
        return sorted(parts, key=lambda file: int(file.stem))
    first = _PART.fullmatch(parts[0].stem)
    if first is None and len(parts) == 1:
        return parts
    if first is None:
        raise InputError(f"{folder} holds {names[0]} and {names[1]}, parts of one split; remove one")
    split, number, count = first.groups()
    for index, name in enumerate(names):
        expected = f"{split}-{index:0{len(number)}}-of-{count}.parquet"
        if name != expected:
            raise InputError(f"{folder} holds {name}, but not {expected}; bring all parts of the split")
    if len(names) != int(count):
        raise InputError(f"{folder} holds {len(names)} of the {int(count)} parts of {split!r}; bring all")
    return parts
