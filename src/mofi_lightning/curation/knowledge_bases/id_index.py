"""Which row has an id: hashes of the ids in ascending order, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.knowledge_bases.external_sort import ArrayFile, Buckets, hash_of, mapped

Rows = NDArray[np.int32]


class IdIndex:
    """Finds the row of an id, up to its hash (`external_sort.hash_of`): the caller compares the id itself."""

    def __init__(self, folder: Path) -> None:
        self._hashes, self._rows = (mapped(folder / f"{name}.npy") for name in ("hashes", "rows"))

    def find(self, ids: Sequence[str]) -> Rows:
        """The only row that can have each of `ids`, `[n]`; -1 where none can."""
        wanted = np.fromiter(map(hash_of, ids), dtype=np.uint64, count=len(ids))
        place = np.searchsorted(self._hashes, wanted).clip(max=len(self._hashes) - 1)
        rows: Rows = np.where(self._hashes[place] == wanted, self._rows[place], -1).astype(np.int32)
        return rows


class IdIndexBuilder:
    """Writes an `IdIndex`, in bounded memory.

    Args:
        folder: to make.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._buckets = Buckets(folder / "buckets", columns=2)
        self._rows = 0

    def add(self, ids: Sequence[str]) -> None:
        """Add the ids of the next rows."""
        rows = np.arange(self._rows, self._rows + len(ids), dtype=np.uint64)
        hashes = np.fromiter(map(hash_of, ids), dtype=np.uint64, count=len(ids))
        self._buckets.add(np.stack([hashes, rows], axis=1))
        self._rows += len(ids)

    def write(self) -> Rows:
        """Write the index. Of rows with one id the first stays, and the others are counted out.

        Returns:
            The rows left out, ascending; the rows that stay are numbered anew without them.
        """
        repeated: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        spool = self._folder / "spool.npy"
        with ArrayFile(self._folder / "hashes.npy", np.uint64) as hashes, ArrayFile(spool, np.int64) as rows:
            for records in self._buckets.sorted():
                first = np.ones(len(records), dtype=bool)
                first[1:] = records[1:, 0] != records[:-1, 0]
                hashes.append(records[first, 0])
                rows.append(records[first, 1])
                repeated.append(records[~first, 1].astype(np.int64))
        out = np.sort(np.concatenate(repeated))
        old = mapped(spool)
        with ArrayFile(self._folder / "rows.npy", np.int32) as file:
            for start in range(0, len(old), 1 << 20):
                part = old[start : start + (1 << 20)]
                file.append(part - np.searchsorted(out, part))
        spool.unlink()
        return out.astype(np.int32)
