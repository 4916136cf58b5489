"""Data sets on disk: the only writer and reader of litdata shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofi_lightning.data import vocabulary as vocabularies
from mofi_lightning.data.schema import SCHEMA_VERSION, Row, checksum
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from litdata import StreamingDataset

CHUNK_BYTES = 1 << 26
# Local chunks are mapped in place and nothing is cached, but litdata's default wants 50 GB of free disk.
_MAX_CACHE_SIZE = "25GB"


# litdata picks the parser of each field by the name in index.json, and pickle is among those it knows.
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
    """An Images-to-Entities data set on disk.

    Attributes:
        path: its folder.
        rows: number of rows.
        fields: what its rows carry: 'image', 'text' and possibly 'entity'.
    """

    path: Path
    rows: int
    fields: frozenset[str]

    @cached_property
    def vocabulary(self) -> EntityVocabulary | None:
        """The entities, memory-mapped; None where the rows carry none."""
        return EntityVocabulary.load(self.path) if "entity" in self.fields else None


def write_dataset(rows: Iterable[Row], output: Path, vocabulary: EntityVocabulary | None = None) -> None:
    """Write `rows` as a data set.

    The folder is written beside `output` and renamed when it is complete, so a killed writer leaves nothing
    that could be read.

    Args:
        rows: the rows, in the order in which they are stored; read once.
        output: folder to make; its parent is made too.
        vocabulary: the entities that the rows' class ids count; None for rows without entities.

    Raises:
        InputError: `output` exists and is not empty, there are no rows, or a row's entities do not fit.
    """
    from litdata.streaming.writer import BinaryWriter

    output = Path(output)
    refuse_existing(output)
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed writer left
    (partial / "shards").mkdir(parents=True)
    try:
        writer = BinaryWriter(str(partial / "shards"), chunk_bytes=CHUNK_BYTES)
        count = 0
        for row in rows:
            _check_entities(row, 0 if vocabulary is None else len(vocabulary))
            writer.add_item(count, _record(row))
            count += 1
        if not count:
            raise InputError(f"there are no rows to write to {output}")
        writer.done()
        writer.merge()
        if vocabulary is not None:
            vocabulary.save(partial / vocabularies.FILE_NAME)
        fields = ["image", "text", *(["entity"] if vocabulary is not None else [])]
        about = {"schema": SCHEMA_VERSION, "rows": count, "fields": fields}
        (partial / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")
        os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(output: Path) -> None:
    """Raise InputError if the folder `output` exists and is not empty (or is a file)."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"{output} exists already; remove it or choose another output")


def open_dataset(path: str | Path) -> DatasetInfo:
    """Read what the data set at `path` holds.

    Raises:
        InputError: there is no such folder, it is no data set, or a later version wrote it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"no data set at {path}: there is no such folder")
    try:
        about = json.loads((path / "dataset.json").read_text())
        schema, rows, fields = about["schema"], int(about["rows"]), frozenset(about["fields"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no data set: its dataset.json is missing or damaged") from error
    if schema != SCHEMA_VERSION:
        raise InputError(
            f"data set {path} has schema {schema}, this version reads {SCHEMA_VERSION}: build it again"
        )
    return DatasetInfo(path, rows, fields)


class ShardReader:
    """Random access to the rows of a data set; every row read is checked against its checksum.

    The litdata stream opens in the process that reads first, so a reader can be handed to worker processes.

    Args:
        info: the data set.

    Attributes:
        info: the data set.
        chunk_sizes: rows of each chunk, int64 `[chunks]`.

    Raises:
        InputError: the index is not one that `write_dataset` made, or a chunk is missing or has another size
            than the index says. (litdata itself would wait two minutes for it, then report a time-out.)
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self._stream: StreamingDataset | None = None
        self.chunk_sizes = self._check_chunks()

    def __len__(self) -> int:
        return self.info.rows

    def __getitem__(self, index: int) -> Row:
        """Row `index`.

        Raises:
            CorruptRow: its bytes cannot be parsed or do not match the checksum.
        """
        if self._stream is None:
            from litdata import StreamingDataset

            # batch_decode=0: litdata would parse 256 rows for each one asked for
            self._stream = StreamingDataset(
                str(self.info.path / "shards"), max_cache_size=_MAX_CACHE_SIZE, batch_decode=0
            )
        try:
            record = self._stream[index]
            key, image, text = record["key"], bytes(record["image"]), record["text"]
            entities, scores = tuple(record["entities"].tolist()), tuple(record["scores"].tolist())
            intact = record["checksum"] == checksum(key, image, text, entities, scores)
        except Exception as error:  # damaged bytes make litdata's parsers fail in any way
            raise CorruptRow(f"row {index} of {self.info.path} cannot be read") from error
        if not intact:
            raise CorruptRow(
                f"row {index} of {self.info.path} (key {key!r}) does not match its checksum", key
            )
        return Row(key, image, text, entities, scores)

    def _check_chunks(self) -> np.ndarray:
        shards = self.info.path / "shards"
        try:
            index = json.loads((shards / "index.json").read_text())
            sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]], dtype=np.int64)
            expected = {str(chunk["filename"]): int(chunk["chunk_bytes"]) for chunk in index["chunks"]}
            formats = {str(name).partition(":")[0] for name in index["config"]["data_format"]}
            layout = json.loads(index["config"]["data_spec"])[1]
            nested = [field["type"] for field in layout["children_spec"] if field["type"] is not None]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{shards}/index.json is missing or damaged; build the data set again"
            ) from error
        if not formats <= _FIELD_FORMATS or layout["type"] != "builtins.dict" or nested:
            raise InputError(f"{shards}/index.json was not written by mofi; build the data set again")
        if sizes.sum() != self.info.rows:
            raise InputError(
                f"data set {self.info.path} holds {sizes.sum()} rows, its dataset.json says {self.info.rows}"
            )
        for name, size in expected.items():
            found = (shards / name).stat().st_size if (shards / name).is_file() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} of {size} bytes"
                raise InputError(f"chunk {shards / name} {state}; copy or build the data set again")
        return sizes


def _check_entities(row: Row, classes: int) -> None:
    if len(row.entities) != len(row.scores):
        raise InputError(f"row {row.key!r} has {len(row.entities)} entities but {len(row.scores)} scores")
    if any(not 0 <= entity < classes for entity in row.entities):
        raise InputError(f"row {row.key!r} names entities {row.entities}, the vocabulary has {classes}")


def _record(row: Row) -> dict[str, object]:
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
