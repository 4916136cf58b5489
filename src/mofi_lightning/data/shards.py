"""Data sets on disk and in object storage: the only reader of litdata shards."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofi_lightning.data.schema import SCHEMA_VERSION, Row, checksum
from mofi_lightning.data.storage import Cache, ChunkCache, fetch, is_remote
from mofi_lightning.data.vocabulary import FILE_NAME as VOCABULARY_NAME
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from litdata import StreamingDataset

# litdata sees local chunks only and caches nothing, but its default wants 50 GB of free disk
_MAX_CACHE_SIZE = "25GB"

# bytes of dataset.json, and of the index and the vocabulary, that are fetched from a server at most
_MOST_ABOUT, _MOST_BESIDE = 1 << 20, 1 << 34

_CHUNK_NAME = re.compile(r"chunk-(\d{6,})\.bin")

# litdata picks the parser of each field by the name in index.json, and pickle is among those it knows
_FIELD_FORMATS = {"str", "bytes", "int", "no_header_numpy"}


class CorruptRow(InputError):
    """A row's bytes are not those that were written.

    Attributes:
        key: of the row, as far as it can be read.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class DatasetInfo:
    """An Images-to-Entities data set.

    Attributes:
        location: its folder or URI.
        path: the local folder with all of it but, if it is remote, the chunks.
        rows: number of rows.
        fields: what its rows carry: 'image', 'text' and possibly 'entity'.
        fingerprint: of all rows in their order.
        cache: where chunks are kept if it is remote.
    """

    location: str
    path: Path
    rows: int
    fields: frozenset[str]
    fingerprint: str
    cache: Cache = field(default_factory=Cache)

    @cached_property
    def vocabulary(self) -> EntityVocabulary | None:
        """The entities, memory-mapped; None where the rows carry none."""
        return EntityVocabulary.load(self.path) if "entity" in self.fields else None


def open_dataset(location: str | Path, cache: Cache = Cache()) -> DatasetInfo:
    """Read what the data set at `location` holds.

    Args:
        location: local folder, or URI such as s3://bucket/folder, gs://bucket/folder or
            hf://datasets/organization/name/folder.
        cache: where the files of a remote data set are kept.

    Raises:
        InputError: there is no such folder, it is no data set, another version wrote it, or the storage
            cannot be reached.
    """
    location = str(location)
    if not is_remote(location):
        path = Path(location)
        if not path.is_dir():
            raise InputError(f"no data set at {path}: there is no such folder")
        return _info(location, path, cache)
    location = location.rstrip("/")
    named = hashlib.blake2b(location.encode(), digest_size=8).hexdigest()
    newest = cache.root / named
    fetch(f"{location}/dataset.json", newest / "dataset.json", most=_MOST_ABOUT)
    info = _info(location, newest, cache)
    # a data set that was written anew under the same URI has a place of its own
    path = cache.root / f"{named}-{info.fingerprint}"
    if not (path / "dataset.json").is_file():
        for name in ("shards/index.json", *([VOCABULARY_NAME] if "entity" in info.fields else [])):
            fetch(f"{location}/{name}", path / name, most=_MOST_BESIDE)
        fetch(f"{location}/dataset.json", path / "dataset.json", most=_MOST_ABOUT)  # last: all is there
    found = _info(location, path, cache)
    if found.fingerprint != info.fingerprint:
        shutil.rmtree(path)
        raise InputError(f"data set {location} was written anew while it was opened; start again")
    return found


def _info(location: str, path: Path, cache: Cache) -> DatasetInfo:
    try:
        about = json.loads((path / "dataset.json").read_text())
        schema = about["schema"]
        if schema == SCHEMA_VERSION:
            rows, fields, fingerprint = int(about["rows"]), frozenset(about["fields"]), about["fingerprint"]
            int(fingerprint, 16)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{location} is no data set: its dataset.json is missing or damaged") from error
    if schema != SCHEMA_VERSION:
        raise InputError(
            f"data set {location} has schema {schema}, this version reads {SCHEMA_VERSION}: build it again"
        )
    return DatasetInfo(location, path, rows, fields, fingerprint, cache)


class ShardReader:
    """Random access to the rows of a data set; every row read is checked against its checksum.

    The litdata stream opens in the process that reads first, so a reader can be handed to worker processes.
    Chunks of a remote data set are fetched when a row of theirs is read.

    Args:
        info: the data set.
        check: refuse a data set that lacks part of a chunk.

    Attributes:
        info: the data set.
        chunk_names: file names of the chunks.
        chunk_sizes: rows of each chunk, int64 `[chunks]`.
        first_rows: the row at which each chunk begins, and the number of rows, int64 `[chunks + 1]`.

    Raises:
        InputError: the index is not one that `write_dataset` made, or a chunk is missing or has another size
            than the index says. (litdata itself would wait two minutes for it, then report a time-out.)
    """

    def __init__(self, info: DatasetInfo, check: bool = True) -> None:
        self.info = info
        self._stream: StreamingDataset | None = None
        bytes_of = self._read_index()
        self.chunk_names = list(bytes_of)
        self._numbers = [int(name.removeprefix("chunk-").removesuffix(".bin")) for name in bytes_of]
        self._fetched_again: set[int] = set()
        self.first_rows = np.concatenate([[0], np.cumsum(self.chunk_sizes)])
        self._bytes_of = bytes_of
        self._cache: ChunkCache | None = None
        if is_remote(info.location):
            self._cache = ChunkCache(f"{info.location}/shards", info.path / "shards", bytes_of, info.cache)
        elif check and (faults := self.chunk_faults()):
            raise InputError(f"{next(iter(faults.values()))}; copy or build the data set again")

    def __len__(self) -> int:
        return self.info.rows

    def __getitem__(self, index: int) -> Row:
        """Row `index`.

        Raises:
            CorruptRow: its bytes cannot be parsed or do not match the checksum.
            InputError: its chunk cannot be fetched.
        """
        chunk = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        try:
            return self._read(index, chunk)
        except CorruptRow:
            if self._cache is None or chunk in self._fetched_again:
                raise
        # the copy may be damaged where the data set is not
        self._fetched_again.add(chunk)
        self._cache.drop(self.chunk_names[chunk])
        return self._read(index, chunk)

    def _read(self, index: int, chunk: int) -> Row:
        if self._cache is not None:
            self._cache.ensure(self.chunk_names[chunk])
        if self._stream is None:
            from litdata import StreamingDataset

            # batch_decode=0: litdata would parse 256 rows for each one asked for
            self._stream = StreamingDataset(
                str(self.info.path / "shards"), max_cache_size=_MAX_CACHE_SIZE, batch_decode=0
            )
        try:
            record = self._stream[index]
            entities, scores = tuple(record["entities"].tolist()), tuple(record["scores"].tolist())
            row = Row(record["key"], bytes(record["image"]), record["text"], entities, scores)
            intact = record["checksum"] == self.checksum(index, row)
        except Exception as error:  # damaged bytes make litdata's parsers fail in any way
            self._stream = None  # where a chunk cannot be opened, it would go on with the one before
            raise CorruptRow(f"row {index} of {self.info.location} cannot be read") from error
        if not intact:
            self._stream = None  # litdata may hold another file's pages
            raise CorruptRow(
                f"row {index} of {self.info.location} (key {row.key!r}) does not match its checksum", row.key
            )
        return row

    def checksum(self, index: int, row: Row) -> int:
        """What the checksum of `row` must be if it is row `index`."""
        chunk = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        return checksum(row, self._numbers[chunk], index - int(self.first_rows[chunk]))

    def prefetch(self, chunks: Sequence[int]) -> None:
        """Say that rows of `chunks` will be read next, in this order; remote ones are fetched meanwhile."""
        if self._cache is not None:
            self._cache.prefetch([self.chunk_names[chunk] for chunk in chunks])

    def cache_bytes(self, chunks: int) -> int:
        """What the cache must hold so that so many chunks are at hand at once; 0 if the data set is local."""
        return 0 if self._cache is None else sum(sorted(self._bytes_of.values())[-chunks:])

    def chunk_faults(self) -> dict[int, str]:
        """What is wrong with the files of the chunks, by number of the chunk; nothing is fetched."""
        faults = {}
        for number, (name, size) in enumerate(self._bytes_of.items()):
            file = self.info.path / "shards" / name
            found = file.stat().st_size if file.is_file() else None
            if found is None and self._cache is None:
                faults[number] = f"chunk {file} is missing"
            elif found not in (None, size):
                faults[number] = f"chunk {file} has {found} of {size} bytes"
        return faults

    def _read_index(self) -> dict[str, int]:
        """Bytes of each chunk; sets `chunk_sizes`."""
        file = self.info.path / "shards" / "index.json"
        try:
            index = json.loads(file.read_text())
            self.chunk_sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]], dtype=np.int64)
            bytes_of = {str(chunk["filename"]): int(chunk["chunk_bytes"]) for chunk in index["chunks"]}
            formats = {str(name).partition(":")[0] for name in index["config"]["data_format"]}
            layout = json.loads(index["config"]["data_spec"])[1]
            nested = [part["type"] for part in layout["children_spec"] if part["type"] is not None]
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{file} is missing or damaged; build the data set again") from error
        plain = all(map(_CHUNK_NAME.fullmatch, bytes_of)) and self.chunk_sizes.min(initial=1) > 0
        if not formats <= _FIELD_FORMATS or layout["type"] != "builtins.dict" or nested or not plain:
            raise InputError(f"{file} was not written by mofi; build the data set again")
        if self.chunk_sizes.sum() != self.info.rows:
            raise InputError(
                f"data set {self.info.location} holds {self.chunk_sizes.sum()} rows, its dataset.json says "
                f"{self.info.rows}"
            )
        return bytes_of
