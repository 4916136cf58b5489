"""The only writer of data sets.

A data set is written in parts, one chunk each, by any number of processes, into a folder beside its final
place: `.NAME.partial/parts/000000`, each of which appears whole or not at all. When all parts are there they
are joined, and the folder is renamed. A killed writer leaves nothing that could be read, and a new one need
not write again the parts that exist.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mofi_lightning.data import vocabulary as vocabularies
from mofi_lightning.data.file_locks import claimed
from mofi_lightning.data.schema import SCHEMA_VERSION, Fingerprint, Row, checksum
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

# of the images and texts of a chunk, before it is closed
CHUNK_BYTES = 1 << 26
_MOST_ROWS = 1 << 16
# one part is one chunk: litdata shall not cut it
_NO_LIMIT = 1 << 62


def write_dataset(rows: Iterable[Row], output: Path, vocabulary: EntityVocabulary | None = None) -> None:
    """Write `rows` as a data set, in this process.

    Args:
        rows: the rows, in the order in which they are stored; read once.
        output: folder to make; its parent is made too.
        vocabulary: the entities that the rows' class ids count; None for rows without entities.

    Raises:
        InputError: `output` exists and is not empty, there are no rows, or a row's entities do not fit.
    """
    with unfinished(output) as partial:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed writer left
        try:
            classes = 0 if vocabulary is None else len(vocabulary)
            parts = 0
            for parts, block in enumerate(blocks(rows), 1):
                write_part(partial, parts - 1, block, classes)
            join_parts(partial, range(parts), Path(output), vocabulary)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def unfinished(output: Path) -> Iterator[Path]:
    """The folder in which this process alone writes the data set `output` until it is complete.

    Raises:
        InputError: `output` cannot be made, is there already, or another process is writing it.
    """
    refuse_existing(output)
    place = Path(output).resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with claimed(place.with_name(f".{place.name}"), wait=False) as lock:
        if lock is None:
            raise InputError(f"another process is writing {output}; wait for it, or choose another output")
        refuse_existing(output)  # it may just have been finished
        yield _partial(place)


def _partial(place: Path) -> Path:
    return place.with_name(f".{place.name}.partial")


def refuse_existing(output: Path) -> None:
    """Raise InputError if the folder `output` cannot be made, or exists and is not empty (or is a file)."""
    place = Path(output).resolve()
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise InputError(f"{output} exists already; remove it or choose another output")
    if place == Path.cwd() or os.path.ismount(place):
        raise InputError(f"{output} is a folder that cannot be replaced; name a new one in it")
    above = next(folder for folder in place.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{output} cannot be made: {above} cannot be written to")


def blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of one part after the other."""
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row.image) + len(row.text)
        if size >= CHUNK_BYTES or len(block) == _MOST_ROWS:
            yield block
            block, size = [], 0
    if block:
        yield block


def write_part(
    partial: Path, number: int, rows: Sequence[Row], classes: int, notes: dict[str, Any] | None = None
) -> None:
    """Write part `number`; it appears whole or not at all.

    Args:
        partial: `unfinished` of the data set; made if missing.
        number: of the part, which says where its rows come.
        rows: possibly none.
        classes: number of entities of the vocabulary; 0 for rows without entities.
        notes: on the part, plain values; kept until the parts are joined.

    Raises:
        InputError: a row's entities do not fit.
    """
    from litdata.streaming.writer import BinaryWriter

    folder = _part(partial, number)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        records = [_record(row, classes, number, place) for place, row in enumerate(rows)]
        if records:
            writer = BinaryWriter(str(fresh), chunk_bytes=_NO_LIMIT)
            for index, record in enumerate(records):
                writer.add_item(index, record)
            writer.done()
            writer.merge()
        checksums = np.array([record["checksum"] for record in records], dtype="<u4")
        (fresh / "checksums").write_bytes(checksums.tobytes())
        (fresh / "notes.json").write_text(json.dumps(notes))
        for file in fresh.iterdir():  # a crash of the machine must not leave a part that only looks whole
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        _replace_folder(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def read_notes(partial: Path, number: int) -> dict[str, Any] | None:
    """The notes of part `number`; None if it has not been written, or not all of it is there."""
    part = _part(partial, number)
    try:
        notes: dict[str, Any] | None = json.loads((part / "notes.json").read_text())
        if (part / "checksums").stat().st_size:
            (chunk,) = json.loads((part / "index.json").read_text())["chunks"]
            files = (part / chunk["filename"], partial / "shards" / _chunk_name(number))
            if all(not file.exists() or file.stat().st_size != chunk["chunk_bytes"] for file in files):
                return None
    except (OSError, ValueError):
        return None
    return notes


def join_parts(
    partial: Path, parts: Sequence[int], output: Path, vocabulary: EntityVocabulary | None = None
) -> int:
    """Make the data set of its parts; can be repeated after it was killed.

    Args:
        partial: `unfinished` of the data set.
        parts: numbers of the parts that were written, ascending.
        output: folder to make.
        vocabulary: the entities; None for rows without entities.

    Returns:
        Its number of rows.

    Raises:
        InputError: there are no rows.
    """
    if not parts:
        raise InputError(f"there are no rows to write to {output}")
    shards = partial / "shards"
    shards.mkdir(exist_ok=True)
    fingerprint = Fingerprint()
    chunks: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    rows = 0
    for number in parts:
        part = _part(partial, number)
        checksums = (part / "checksums").read_bytes()
        fingerprint.add(checksums)
        if not checksums:
            continue
        rows += len(checksums) // 4
        index = json.loads((part / "index.json").read_text())
        config = index["config"]
        (chunk,) = index["chunks"]
        name = _chunk_name(number)
        if (part / chunk["filename"]).exists():
            os.replace(part / chunk["filename"], shards / name)
        chunks.append({**chunk, "filename": name})
    if not rows:
        raise InputError(f"there are no rows to write to {output}")
    names = {chunk["filename"] for chunk in chunks}
    for file in shards.iterdir():  # of a writer that was killed here, of rows that have changed since
        if file.name not in names:
            file.unlink()
    index = {"chunks": chunks, "config": config}
    (shards / "index.json").write_text(json.dumps(index, sort_keys=True))
    if vocabulary is not None:
        vocabulary.save(partial / vocabularies.FILE_NAME)
    about = {
        "schema": SCHEMA_VERSION,
        "rows": rows,
        "fields": ["image", "text", *(["entity"] if vocabulary is not None else [])],
        "fingerprint": fingerprint.text(None if vocabulary is None else partial / vocabularies.FILE_NAME),
    }
    (partial / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(partial / "parts")
    os.replace(partial, Path(output).resolve())
    return rows


def _part(partial: Path, number: int) -> Path:
    return partial / "parts" / f"{number:06d}"


def _chunk_name(number: int) -> str:
    return f"chunk-{number:06d}.bin"


def _replace_folder(fresh: Path, folder: Path) -> None:
    try:
        os.replace(fresh, folder)
    except OSError:  # it is there, of a process that did the same work
        shutil.rmtree(folder)
        os.replace(fresh, folder)


def _record(row: Row, classes: int, chunk: int, place: int) -> dict[str, Any]:
    if len(row.entities) != len(row.scores):
        raise InputError(f"row {row.key!r} has {len(row.entities)} entities but {len(row.scores)} scores")
    if any(not 0 <= entity < classes for entity in row.entities):
        raise InputError(f"row {row.key!r} names entities {row.entities}, the vocabulary has {classes}")
    entities = np.array(row.entities, dtype=np.int64)
    scores = np.array(row.scores, dtype=np.float32)
    return {
        "key": row.key,
        "image": row.image,
        "text": row.text,
        "entities": entities,
        "scores": scores,
        # of the numbers as they are stored
        "checksum": checksum(row._replace(scores=tuple(scores.tolist())), chunk, place),
    }
