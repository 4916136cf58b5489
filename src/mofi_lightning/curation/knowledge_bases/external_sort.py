"""Arrays that are larger than the memory: written piece by piece, sorted bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# records that wait in memory before they are dealt to the buckets: 16 MB of two columns
_WAITING = 1 << 20


@lru_cache(maxsize=1 << 16)
def hash_of(text: str) -> int:
    """64 bits of BLAKE2b of `text`: the same in every process, evenly spread.

    Two of n texts share them with a probability of about n^2 / 2^65: 3e-4 for 110 million.
    """
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mapped(path: Path) -> NDArray[Any]:
    """The array of a .npy file, memory-mapped; a plain one, since slices of a `numpy.memmap` are slow."""
    array: NDArray[Any] = np.load(path, mmap_mode="r").view(np.ndarray)
    return array


class ArrayFile:
    """An array of one axis in a .npy file, appended to until the `with` block ends.

    Args:
        path: file to write.
        dtype: of the array.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = open(path, "wb")  # noqa: SIM115
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Add `values`, of one axis, at the end."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # NumPy pads the header for any length of the first axis, so the final one fits in its place
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        description = npy.dtype_to_descr(self._dtype)
        npy.write_array_header_1_0(
            self._file, {"descr": description, "fortran_order": False, "shape": (self._length,)}
        )


class Buckets:
    """Records of uint64 columns on disk, to be sorted by the first, which is a hash.

    A record goes to one of 256 files by the highest byte of its hash: each is sorted by itself, and in the
    order of the files they are sorted as a whole. A few records never leave the memory.

    Args:
        folder: for the files; made if there are any, and removed when the records have been read.
        columns: of a record.
        distinct: whether equal records are one.
    """

    def __init__(self, folder: Path, columns: int, distinct: bool = False) -> None:
        self._folder = folder
        self._columns = columns
        self._distinct = distinct
        self._waiting: list[Hashes] = []
        self._size = 0

    def add(self, records: Hashes) -> None:
        """Add records `[n, columns]`."""
        self._waiting.append(records)
        self._size += len(records)
        if self._size >= _WAITING:
            self._deal()

    def sorted(self) -> Iterator[Hashes]:
        """The records in pieces `[n, columns]`, ascending by hash; equal hashes in the order of adding."""
        if not self._folder.exists():
            yield self._in_order(np.concatenate([np.empty((0, self._columns), np.uint64), *self._waiting]))
            return
        self._deal()
        for bucket in range(256):
            file = self._folder / f"{bucket:02x}"
            if file.exists():
                yield self._in_order(np.fromfile(file, dtype="<u8").reshape(-1, self._columns))
                file.unlink()
        self._folder.rmdir()

    def _deal(self) -> None:
        if not self._waiting:
            return
        self._folder.mkdir(exist_ok=True)
        records = self._in_order(np.concatenate(self._waiting))
        self._waiting, self._size = [], 0
        ends = np.searchsorted(records[:, 0] >> np.uint64(56), np.arange(256, dtype=np.uint64), "right")
        start = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > start:
                with open(self._folder / f"{bucket:02x}", "ab") as file:
                    records[start:end].astype("<u8", copy=False).tofile(file)
            start = end

    def _in_order(self, records: Hashes) -> Hashes:
        if self._distinct:
            return np.unique(records, axis=0) if self._columns > 1 else np.unique(records)[:, None]
        return records[np.argsort(records[:, 0], kind="stable")]
