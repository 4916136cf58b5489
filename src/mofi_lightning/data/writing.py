"""The only writer of data sets.

A data set is written in parts, one chunk each, by any number of processes, into a folder beside its final
place: `.NAME.partial/parts/000000`, each of which appears whole or not at all. When all parts are there they
are joined, and the folder is renamed. A killed writer leaves nothing that could be read, and a new one need
not write again the parts that exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mofi_lightning.data import vocabulary as vocabularies
from mofi_lightning.data.schema import SCHEMA_VERSION, Row, checksum
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

# of the images and texts of a chunk, before it is closed
CHUNK_BYTES = 1 << 26
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
    output = Path(output)
    refuse_existing(output)
    partial = partial_folder(output)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed writer left
    try:
        classes = 0 if vocabulary is None else len(vocabulary)
        parts = 0
        for parts, block in enumerate(blocks(rows), 1):
            write_part(partial, parts - 1, block, classes)
        if not parts:
            raise InputError(f"there are no rows to write to {output}")
        join_parts(output, parts, vocabulary)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def partial_folder(output: Path) -> Path:
    """Where `output` is written until it is complete."""
    return output.parent / f".{output.name}.partial"


def refuse_existing(output: Path) -> None:
    """Raise InputError if the folder `output` exists and is not empty (or is a file)."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"{output} exists already; remove it or choose another output")


def blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of one part after the other."""
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row.image) + len(row.text)
        if size >= CHUNK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def write_part(
    partial: Path, number: int, rows: Sequence[Row], classes: int, notes: dict[str, Any] | None = None
) -> None:
    """Write part `number`; it appears whole or not at all.

    Args:
        partial: `partial_folder` of the data set; made if missing.
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
        records = [_record(row, classes) for row in rows]
        if records:
            writer = BinaryWriter(str(fresh), chunk_bytes=_NO_LIMIT)
            for index, record in enumerate(records):
                writer.add_item(index, record)
            writer.done()
            writer.merge()
        checksums = np.array([record["checksum"] for record in records], dtype="<u4")
        (fresh / "checksums").write_bytes(checksums.tobytes())
        (fresh / "notes.json").write_text(json.dumps(notes))
        _replace_folder(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def read_notes(partial: Path, number: int) -> dict[str, Any] | None:
    """The notes of part `number`; None if it has not been written, or without notes."""
    try:
        notes: dict[str, Any] | None = json.loads((_part(partial, number) / "notes.json").read_text())
    except FileNotFoundError:
        return None
    return notes


def join_parts(output: Path, parts: int, vocabulary: EntityVocabulary | None = None) -> int:
    """Make the data set `output` of its parts; can be repeated after it was killed.

    Args:
        output: folder to make.
        parts: number of parts that were written.
        vocabulary: the entities; None for rows without entities.

    Returns:
        Its number of rows.

    Raises:
        InputError: there are no rows.
    """
    partial = partial_folder(output)
    shards = partial / "shards"
    shards.mkdir(exist_ok=True)
    fingerprint = hashlib.blake2b(digest_size=16)
    chunks: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    rows = 0
    for number in range(parts):
        part = _part(partial, number)
        checksums = (part / "checksums").read_bytes()
        fingerprint.update(checksums)
        if not checksums:
            continue
        rows += len(checksums) // 4
        index = json.loads((part / "index.json").read_text())
        config = index["config"]
        (chunk,) = index["chunks"]
        name = f"chunk-{number:06d}.bin"
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
        "fingerprint": fingerprint.hexdigest(),
    }
    (partial / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")
    os.replace(partial, output)
    shutil.rmtree(output / "parts")
    return rows


def _part(partial: Path, number: int) -> Path:
    return partial / "parts" / f"{number:06d}"


def _replace_folder(fresh: Path, folder: Path) -> None:
    try:
        os.replace(fresh, folder)
    except OSError:  # it is there, of a process that did the same work
        shutil.rmtree(folder)
        os.replace(fresh, folder)


def _record(row: Row, classes: int) -> dict[str, Any]:
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
        "checksum": checksum(row.key, row.image, row.text, entities.tolist(), scores.tolist()),
    }
