"""Pairs files: the parquet of image + alt-text that `mofi pairs` writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mofi_lightning.data.schema import Row
from mofi_lightning.types import InputError

_COLUMNS = ["key", "image", "text"]
_BATCH_ROWS = 256


class PairsReader:
    """Random access to the rows of a pairs file; one row group is held in memory.

    Args:
        path: parquet file with the columns key, image (the encoded file) and text.

    Raises:
        InputError: no such file, no parquet, a column is missing, or there are no rows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no pairs file at {self.path}")
        try:
            metadata = pq.read_metadata(self.path)
        except pa.ArrowInvalid as error:
            raise InputError(f"{self.path} is no parquet file: {error}") from error
        missing = set(_COLUMNS) - set(metadata.schema.to_arrow_schema().names)
        if missing:
            raise InputError(f"pairs file {self.path} lacks the columns {', '.join(sorted(missing))}")
        if not metadata.num_rows:
            raise InputError(f"pairs file {self.path} is empty")
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes)
        self._group = -1
        self._table: pa.Table | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        """Row `index`, without entities."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group or self._table is None:
            self._table = pq.ParquetFile(self.path).read_row_group(group, columns=_COLUMNS)
            self._group = group
        offset = index - (int(self._ends[group - 1]) if group else 0)
        key, image, text = (self._table[column][offset].as_py() for column in _COLUMNS)
        return Row(key, image or b"", text or "")

    def __iter__(self) -> Iterator[Row]:
        for batch in pq.ParquetFile(self.path).iter_batches(_BATCH_ROWS, columns=_COLUMNS):
            for pair in batch.to_pylist():
                yield Row(pair["key"], pair["image"] or b"", pair["text"] or "")
