"""Embeddings on disk by the content they come from: append-only, safe against being killed at any moment.

A file has a header (magic, width of the embedding, width of the features or 0 where the embedding stands for
them, checksum), then records of equal size: hash of the content, embedding, features, checksum of the
record. A torn record at the end is cut off, a damaged one is made void, and what it held is embedded again.
Beside it, in `.failures.jsonl`, stands which contents cannot be decoded, and why.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)

_MAGIC = b"MOFIVEC1"
_HEADER = struct.Struct("<8sIII44x")
_NOTHING = b""  # what NumPy makes of a hash of zeros: the mark of a void record


def content_hashes(contents: Iterable[bytes]) -> np.ndarray:
    """BLAKE2b of each content, 16 bytes, as NumPy's `S16`, which compares them whole."""
    return np.array([hashlib.blake2b(c, digest_size=16).digest() for c in contents], dtype="S16")


class EmbeddingStore:
    """Embeddings of one model in a file, which several processes may fill at once.

    Args:
        path: of the file; made with the first embedding.

    Raises:
        InputError: the file is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failures_file = path.with_name(f"{path.name}.failures.jsonl")
        self._width = self._feature_width = 0
        self._count = 0
        # sorted hashes and their records, in runs of growing size, merged like the digits of a binary counter
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._failures: dict[bytes, str] = {}
        if path.is_file():
            with self._locked() as file:
                self._read_new(file)
        if self._failures_file.is_file():
            self._failures = dict(_read_failures(self._failures_file))

    def __len__(self) -> int:
        """Number of contents that have an embedding."""
        return sum(len(hashes) for hashes, _ in self._runs)

    def find(self, contents: np.ndarray) -> np.ndarray:
        """Number of the record of each content, int64; -1 for those that have none."""
        found = np.full(len(contents), -1)
        for hashes, records in self._runs:
            places = np.minimum(np.searchsorted(hashes, contents), len(hashes) - 1)
            found = np.where(hashes[places] == contents, records[places], found)
        return found

    def knows(self, contents: np.ndarray) -> np.ndarray:
        """Whether each content has an embedding or is known to have none, bool."""
        failed = np.array([content in self._failures for content in contents.tolist()], dtype=bool)
        return failed | (self.find(contents) >= 0)

    def failure(self, content: bytes) -> str:
        """Why a content that is known to have no embedding has none."""
        return self._failures[content]

    def read(self, contents: np.ndarray) -> tuple[Tensor, Tensor]:
        """Embeddings `[N, D]` and features `[N, F]`, float32; NaN for contents that have none.

        The two are the same tensor where the embedding stands for the features.
        """
        found = self.find(contents)
        known = found >= 0
        vectors = self._map()["vector"] if self._count else np.empty((0, 0), dtype=np.float32)

        def gather(part: np.ndarray) -> Tensor:
            rows = np.full((len(contents), part.shape[1]), np.nan, dtype=np.float32)
            rows[known] = part[found[known]]
            return torch.from_numpy(rows)

        embeddings = gather(vectors[:, : self._width])
        return embeddings, gather(vectors[:, self._width :]) if self._feature_width else embeddings

    def append(
        self, contents: np.ndarray, embeddings: Tensor, features: Tensor | None, failed: Mapping[bytes, str]
    ) -> None:
        """Write the embeddings of a batch and flush them; contents that are there stay as they are.

        Args:
            contents: S16 `[M]`, different from each other.
            embeddings: float32 `[M, D]`.
            features: float32 `[M, F]`; None if the embeddings stand for them.
            failed: contents that cannot be decoded, and why.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as file:
            self._read_new(file)
            if new := {content: why for content, why in failed.items() if content not in self._failures}:
                _append_failures(self._failures_file, new)
                self._failures |= new
            fresh = self.find(contents) < 0
            if not fresh.any():
                return
            vectors = embeddings if features is None else torch.cat([embeddings, features], dim=1)
            self._check_widths(file, embeddings.shape[1], 0 if features is None else features.shape[1])
            records = np.zeros(int(fresh.sum()), dtype=self._dtype)
            records["content"] = contents[fresh]
            records["vector"] = vectors.numpy()[fresh]
            records["crc"] = _checksums(records)
            file.seek(0, 2)
            file.write(records.tobytes())
            file.flush()
            self._remember(records["content"])

    @property
    def _dtype(self) -> np.dtype:
        width = self._width + self._feature_width
        return np.dtype([("content", "S16"), ("vector", "<f4", (width,)), ("crc", "<u4")])

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        self.path.touch()
        with self.path.open("r+b") as file:
            fcntl.flock(
                file, fcntl.LOCK_EX
            )  # closing the file unlocks it, and so does the death of the process
            yield file

    def _map(self) -> np.ndarray:
        return np.memmap(self.path, self._dtype, "r", _HEADER.size, (self._count,))

    def _remember(self, hashes: np.ndarray) -> None:
        rows = (hashes != _NOTHING).nonzero()[0]
        self._runs.append(_run(hashes[rows], self._count + rows))
        self._count += len(hashes)
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= len(self._runs[-1][0]):
            (first, first_rows), (second, second_rows) = self._runs[-2:]
            merged = _run(np.concatenate([first, second]), np.concatenate([first_rows, second_rows]))
            self._runs[-2:] = [merged]

    def _read_new(self, file: BinaryIO) -> None:
        """Read the records since the last time, which other processes wrote; cut off a torn one."""
        size = file.seek(0, 2)
        if size < _HEADER.size:
            file.truncate(0)
            return
        file.seek(0)
        header = file.read(_HEADER.size)
        magic, width, feature_width, checksum = _HEADER.unpack(header)
        if magic != _MAGIC or checksum != zlib.crc32(header[:16]):
            raise InputError(f"{self.path} is no file of embeddings, or damaged; delete it")
        self._width, self._feature_width = width, feature_width
        count, torn = divmod(size - _HEADER.size, self._dtype.itemsize)
        if torn:
            file.truncate(size - torn)
        old = self._count
        if count <= old:
            return
        records = np.memmap(file, self._dtype, "r+", _HEADER.size, (count,))[old:]
        damaged = (records["crc"] != _checksums(records)) & (records["content"] != _NOTHING)
        if damaged.any():
            _log.warning(
                "%s: %d embeddings are damaged and will be made again", self.path, int(damaged.sum())
            )
            records[damaged] = np.zeros(1, dtype=self._dtype)
        self._remember(records["content"])

    def _check_widths(self, file: BinaryIO, width: int, feature_width: int) -> None:
        if not self._width:
            self._width, self._feature_width = width, feature_width
            start = struct.pack("<8sII", _MAGIC, width, feature_width)
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, width, feature_width, zlib.crc32(start)))
        elif (width, feature_width) != (self._width, self._feature_width):
            raise InputError(
                f"{self.path} holds embeddings of {self._width} numbers and features of "
                f"{self._feature_width}, the model gives {width} and {feature_width}; delete the file"
            )


def _run(hashes: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], records[order]


def _checksums(records: np.ndarray) -> np.ndarray:
    rows = records.view(np.uint8).reshape(len(records), records.dtype.itemsize)
    return np.array([zlib.crc32(row[:-4].data) for row in rows], dtype=np.uint32)


def _append_failures(path: Path, failed: Mapping[bytes, str]) -> None:
    lines = "".join(json.dumps({"content": c.hex(), "why": why}) + "\n" for c, why in failed.items())
    with path.open("a+b") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read() != b"\n":  # a line that was torn: it ends here, and is none
                file.write(b"\n")
        file.write(lines.encode())


def _read_failures(path: Path) -> Iterator[tuple[bytes, str]]:
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            # as NumPy gives hashes, without zeros at the end
            yield bytes.fromhex(entry["content"]).rstrip(b"\0"), str(entry["why"])
        except (ValueError, KeyError, TypeError):
            continue
