"""Pairs in parquet files of any origin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mofi_lightning.sources.base import Pair, Source
from mofi_lightning.types import InputError

_BATCH_ROWS = 64
# the row groups of others can be larger than the memory: column chunks are read in pieces of this size, and
# pyarrow's pre_buffer, which would read a row group whole, is off
_BUFFER_BYTES = 2**20


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_key(kind: pa.DataType) -> bool:
    return _is_string(kind) or pa.types.is_integer(kind)


# option -> what its column holds, and the check
_TYPES = {
    "image": ("encoded images (binary)", _is_binary),
    "text": ("texts (string)", _is_string),
    "key": ("keys (string or integer)", _is_key),
}


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
        columns = [self._image, self._text, *([] if self._key is None else [self._key])]
        row = 0
        try:
            with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    for values in batch.to_pylist():
                        key = f"{split}/{row}" if self._key is None else values[self._key]
                        if key is None:
                            raise InputError(
                                f"{path} has no key in row {row}; fill the column {self._key!r} "
                                "or leave out --key"
                            )
                        yield Pair(str(key), values[self._image] or b"", values[self._text] or "")
                        row += 1
        # damaged pages, or texts that are not UTF-8
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} cannot be read after row {row} ({_one_line(error)}); write or download it anew"
            ) from error

    def _check(self, path: Path) -> int:
        """Number of rows of a file that has all columns."""
        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is no parquet file, or damaged ({_one_line(error)}); write or download it anew"
            ) from error
        for option, (kind, accepts) in _TYPES.items():
            column = getattr(self, f"_{option}")
            if column is None:
                continue
            if column not in schema.names:
                raise InputError(
                    f"{path} has no column {column!r} (it has {', '.join(schema.names)}); "
                    f"name the right one with --{option}"
                )
            found = schema.field(column).type
            if not accepts(found.value_type if pa.types.is_dictionary(found) else found):
                raise InputError(
                    f"column {column!r} of {path} is {found}, not {kind}; name the right one with --{option}"
                )
        if not rows:
            raise InputError(f"{path} has no rows; remove it or write it anew")
        return rows


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
