"""Pairs files: the parquet of image + alt-text that `mofi pairs` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mofi_lightning.data.schema import Row
from mofi_lightning.sources.tables import KINDS, check_table, iterate

_COLUMNS = ("key", "image", "text")
_BATCH_ROWS = 256


class PairsReader:
    """Random access to the rows of a pairs file; one row group is held in memory.

    Args:
        path: parquet file with the columns key, image (the encoded file) and text.

    Attributes:
        path: of the file.
        chunk_sizes: rows of each row group, int64 `[groups]`.

    Raises:
        InputError: no such file, no parquet, no rows, or a column is missing or holds something else; when
            rows are read: the file is damaged there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        metadata = check_table(self.path, "pairs file", {name: KINDS[name] for name in _COLUMNS})
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.chunk_sizes = np.array(sizes, dtype=np.int64)
        self._ends = np.cumsum(self.chunk_sizes)
        self._group = -1
        self._rows: list[Row] = []

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Row:
        """Row `index`, without entities."""
        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group:
            self._rows = list(self._read(group))
            self._group = group
        return self._rows[index - (int(self._ends[group - 1]) if group else 0)]

    def prefetch(self, chunks: Sequence[int]) -> None:
        """Nothing: the file is local."""

    def __iter__(self) -> Iterator[Row]:
        return self._read()

    def _read(self, group: int | None = None) -> Iterator[Row]:
        for batch in iterate(self.path, _COLUMNS, _BATCH_ROWS, group):
            for key, image, text in zip(*batch, strict=True):
                yield Row(key, image or b"", text or "")
