"""Stages: parquet files that are written once and reused as long as what they were made from is unchanged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofi_lightning.sources import tables

if TYPE_CHECKING:
    import pyarrow as pa

_FINGERPRINT = b"mofi_lightning.fingerprint"
BATCH_ROWS = 1024


def linked_schema() -> pa.Schema:
    """The pairs with their candidates: ids of entities and P(entity | text), likeliest first."""
    import pyarrow as pa

    return pa.schema(
        [("key", pa.string()), ("entities", pa.list_(pa.string())), ("links", pa.list_(pa.float32()))]
    )


def scored_schema() -> pa.Schema:
    """The linked pairs, the candidates' similarities (null if unchecked), and why an image is unusable."""
    import pyarrow as pa

    return (
        linked_schema()
        .append(pa.field("similarities", pa.list_(pa.float32())))
        .append(pa.field("error", pa.string()))
    )


def fingerprint(*parts: object) -> str:
    """A hash of `parts`, in which a path stands for the sizes and times of modification of its files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(_state(part) if isinstance(part, Path) else part).encode() + b"\0")
    return digest.hexdigest()


def _state(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def is_current(path: Path, fingerprint: str) -> bool:
    """Whether the stage `path` exists and was made from what `fingerprint` stands for."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pyarrow.ArrowException):
        return False
    return metadata.get(_FINGERPRINT) == fingerprint.encode()


def write(
    path: Path, schema: pa.Schema, batches: Iterable[Sequence[Sequence[Any]]], fingerprint: str
) -> None:
    """Write the stage `path`: batches of columns in the order of `schema`. It appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    schema = schema.with_metadata({_FINGERPRINT: fingerprint.encode()})
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for columns in batches:
                writer.write_batch(
                    pa.record_batch(
                        [pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema
                    )
                )
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        for folder in (path.parent, path.parent.parent):  # made for nothing, if nothing else is in them
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def read(path: Path, *columns: str) -> Iterator[list[list[Any]]]:
    """Batches of rows of the parquet file `path`, as lists in the order of `columns`.

    Raises:
        InputError: the file is damaged.
    """
    return tables.iterate(path, columns, BATCH_ROWS)


def check_columns(path: Path, what: str, *columns: str) -> int:
    """Number of rows of the parquet file `path` of a pairs folder, called `what` in errors.

    Raises:
        InputError: no such file, not parquet, no row, or one of `columns` is missing or holds something else.
    """
    return int(tables.check_table(path, what, {name: tables.KINDS[name] for name in columns}).num_rows)
