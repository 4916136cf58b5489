"""The entities themselves: an Arrow file, memory-mapped; a row number stands for an entity."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mofi_lightning.sources.base import Entity

SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("name", pa.large_string()),
        ("aliases", pa.large_list(pa.large_string())),
        ("description", pa.large_string()),
        ("popularity", pa.float32()),
        ("types", pa.large_list(pa.large_string())),
    ]
)
# a batch ends at whichever comes first
_BATCH_ROWS = 1 << 13
_BATCH_CHARACTERS = 1 << 24
# rows up to which one by one is faster than batch by batch
_FEW = 64

Rows = NDArray[np.int32]


class EntityTable:
    """The entities of the Arrow file `path`, memory-mapped."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            self._batches = pa.ipc.open_file(source).read_all().to_batches()
        self._starts: list[int] = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Entity:
        """The entity at `row`, from 0."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is not among the {len(self):,} of the knowledge base")
        number = bisect_right(self._starts, row) - 1
        place = int(row) - self._starts[number]
        return _entity(*(column[place].as_py() for column in self._batches[number].columns))

    def __iter__(self) -> Iterator[Entity]:
        """All entities, in the order of their rows."""
        return (entity for batch in self._batches for entity in _entities(batch))

    def take(self, column: str, rows: Sequence[int] | Rows) -> list[Any]:
        """The values of `column` in `rows`, `[n]`."""
        if len(rows) <= _FEW:
            return [self._value(column, int(row)) for row in rows]
        wanted = np.asarray(rows, dtype=np.int64)
        batch_of = np.searchsorted(self._starts, wanted, side="right") - 1
        taken: list[Any] = [None] * len(wanted)
        order = np.argsort(batch_of, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(batch_of[order])) + 1):
            if len(places):
                number = int(batch_of[places[0]])
                local = pa.array(wanted[places] - self._starts[number])
                values = self._batches[number].column(column).take(local).to_pylist()
                for place, value in zip(places.tolist(), values, strict=True):
                    taken[place] = value
        return taken

    def _value(self, column: str, row: int) -> Any:
        number = bisect_right(self._starts, row) - 1
        return self._batches[number].column(column)[row - self._starts[number]].as_py()


def write_entities(entities: Iterable[Entity], path: Path) -> Iterator[list[str]]:
    """Write `entities` to the Arrow file `path`; yields the ids of each batch when it is written."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in _batches(entities):
            columns = list(zip(*batch, strict=True))
            arrays = [pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))
            yield list(columns[0])


def leave_out(rows: Rows, path: Path) -> None:
    """Write the Arrow file `path` anew without `rows`, which ascend."""
    if not len(rows):
        return
    fresh = path.with_suffix(".fresh")
    start = 0
    with (
        pa.OSFile(str(path)) as source,
        pa.OSFile(str(fresh), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for batch in _stored(source):
            stays = np.ones(batch.num_rows, dtype=bool)
            low, high = np.searchsorted(rows, [start, start + batch.num_rows])
            stays[rows[low:high] - start] = False
            writer.write_batch(batch.filter(pa.array(stays)))
            start += batch.num_rows
    os.replace(fresh, path)


def read_entities(path: Path) -> Iterator[Entity]:
    """The entities of the Arrow file `path` in their order, a batch in memory at a time."""
    with pa.OSFile(str(path)) as source:
        for batch in _stored(source):
            yield from _entities(batch)


def _stored(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(source)
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def _entities(batch: pa.RecordBatch) -> Iterator[Entity]:
    for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield _entity(*values)


def _entity(
    id: str, name: str, aliases: list[str], description: str, popularity: float, types: list[str]
) -> Entity:
    return Entity(id, name, tuple(aliases), description, popularity, tuple(types))


def _batches(entities: Iterable[Entity]) -> Iterator[list[Entity]]:
    batch: list[Entity] = []
    size = 0
    for entity in entities:
        batch.append(entity)
        size += len(entity.id) + len(entity.name) + len(entity.description)
        size += sum(map(len, entity.aliases)) + sum(map(len, entity.types))
        if len(batch) == _BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
