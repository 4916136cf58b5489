"""Pairs in parquet files of any origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mofi_lightning.sources.base import Pair, Source
from mofi_lightning.sources.tables import Kind, check_table, iterate
from mofi_lightning.types import InputError

_BATCH_ROWS = 64


class ParquetSource(Source):
    """Pairs of a parquet file, or of a folder with one parquet file a split.

    A file is the split `train`; in a folder, each file is the split of its name. A missing text or image
    (null) is empty.

    Args:
        path: parquet file, or folder of `{split}.parquet`.
        image: column of the encoded images (binary).
        text: column of the alt-texts (string).
        key: column of the keys (string or integer), unique over all splits; default: the split and the number
            of the row.

    Raises:
        InputError: nothing at `path`, or a file is no parquet, damaged, empty, or lacks a column.
    """

    def __init__(self, path: Path, image: str = "image", text: str = "text", key: str | None = None) -> None:
        self._image, self._text, self._key = image, text, key
        self._files = _find(path)
        self._rows = {split: self._check(file) for split, file in self._files.items()}

    @property
    def splits(self) -> Sequence[str]:
        """`train`, or the names of the folder's files, sorted."""
        return tuple(self._files)

    def count(self, split: str) -> int:
        """Number of rows of `split`, from the file's metadata."""
        return self._rows[split]

    def pairs(self, split: str) -> Iterator[Pair]:
        """The rows of `split`, in the order of the file."""
        path = self._files[split]
        # without a column of keys, the images fill its place
        columns = [self._image if self._key is None else self._key, self._image, self._text]
        row = 0
        for batch in iterate(path, columns, _BATCH_ROWS, key=self._key):
            for key, image, text in zip(*batch, strict=True):
                if self._key is None:
                    key = f"{split}/{row}"
                yield Pair(str(key), image or b"", text or "")
                row += 1

    def _check(self, path: Path) -> int:
        """Number of rows of a file that has all columns."""
        wanted = [("image", self._image, Kind.IMAGE), ("text", self._text, Kind.TEXT)]
        if self._key is not None:
            wanted.append(("key", self._key, Kind.ANY_KEY))
        # one by one: a column may have two uses, and each must suit it
        for option, column, kind in wanted:
            way_out = f"name the right one with --{option}"
            metadata = check_table(path, "file", {column: kind}, way_out)
        return int(metadata.num_rows)


def _find(path: Path) -> dict[str, Path]:
    """Split -> file."""
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise InputError(f"nothing at {path}; give a parquet file or a folder with one parquet file a split")
    files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise InputError(f"{path} holds no *.parquet; give a folder with one parquet file a split")
    return {file.stem: file for file in files}
