"""The entities of a data set: class id, identifier, name, description, number of images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa

from mofi_lightning.types import InputError

FILE_NAME = "vocabulary.arrow"

_SCHEMA = pa.schema(
    # large_string: two million descriptions pass the two gigabytes that 32-bit offsets address
    [
        ("id", pa.large_string()),
        ("name", pa.large_string()),
        ("description", pa.large_string()),
        ("count", pa.int64()),
    ]
)
_BATCH = 65_536

T = TypeVar("T")


class _Column(Sequence[T], Generic[T]):
    """A column of a memory-mapped table; values are made when they are asked for."""

    def __init__(self, array: pa.ChunkedArray) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._array[int(index)].as_py()

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self._array), _BATCH):
            yield from self._array.slice(start, _BATCH).to_pylist()


class EntityVocabulary:
    """The entities of a data set; the row number is the class id.

    Backed by an Arrow IPC file, which unlike parquet can be memory-mapped: millions of entities cost no
    memory until they are read, and processes share the pages. Two vocabularies are equal when they list the
    same identifiers in the same order, that is when class ids mean the same; counts and texts may differ.

    Example:
        >>> vocabulary = EntityVocabulary.from_columns(["Q1", "Q2"], ["cat", "dog"], ["a pet", ""], [3, 5])
        >>> vocabulary.names[1], len(vocabulary)
        ('dog', 2)
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @classmethod
    def from_columns(
        cls, ids: Sequence[str], names: Sequence[str], descriptions: Sequence[str], counts: Sequence[int]
    ) -> EntityVocabulary:
        """Make a vocabulary of columns of equal length.

        Raises:
            InputError: the columns differ in length, or an identifier appears twice.
        """
        lengths = {len(ids), len(names), len(descriptions), len(counts)}
        if len(lengths) > 1:
            raise InputError(f"columns of a vocabulary must be equally long, not {sorted(lengths)}")
        if len(set(ids)) < len(ids):
            (twice, _), *_ = Counter(ids).most_common(1)
            raise InputError(f"entity {twice!r} appears twice in the vocabulary; every id needs one row")
        columns = [list(ids), list(names), list(descriptions), [int(count) for count in counts]]
        return cls(
            pa.Table.from_arrays(
                [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
            )
        )

    @classmethod
    def load(cls, path: str | Path) -> EntityVocabulary:
        """Memory-map the vocabulary file at `path`, or the one in the folder `path`.

        Raises:
            InputError: there is none, or it is no vocabulary.
        """
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"no vocabulary at {file}")
        try:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid as error:
            raise InputError(f"{file} is no vocabulary: {error}") from error
        if table.schema.names != _SCHEMA.names:
            raise InputError(f"{file} is no vocabulary: its columns are {', '.join(table.schema.names)}")
        return cls(table)

    def save(self, path: str | Path) -> None:
        """Write the vocabulary to the file `path`, or into the folder `path`."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_table(self._table, max_chunksize=_BATCH)

    @property
    def ids(self) -> Sequence[str]:
        """Identifiers in the knowledge base."""
        return _Column(self._table["id"])

    @property
    def names(self) -> Sequence[str]:
        """Preferred names."""
        return _Column(self._table["name"])

    @property
    def descriptions(self) -> Sequence[str]:
        """One line of text an entity; empty where the knowledge base has none."""
        return _Column(self._table["description"])

    @property
    def counts(self) -> Sequence[int]:
        """Number of images an entity."""
        return _Column(self._table["count"])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the list of identifiers."""
        digest = hashlib.blake2b(digest_size=8)
        for identifier in self.ids:
            digest.update(identifier.encode() + b"\0")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntityVocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)
