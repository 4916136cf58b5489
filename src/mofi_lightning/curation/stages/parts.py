"""The corpus in parts: consecutive rows of a pairs file, the unit of work of every stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mofi_lightning.curation.stages.base import Stage, atomic
from mofi_lightning.progress import track_rows
from mofi_lightning.sources import parquet, tables
from mofi_lightning.types import InputError

COLUMNS = ("key", "image", "text")
_BATCH_ROWS = 1024
_BATCH_IMAGES = 64


class Part(NamedTuple):
    """Some consecutive row groups of a pairs file.

    Attributes:
        number: of the part, from 0 in the order of the corpus.
        file: the pairs file.
        first: its first row group.
        stop: the row group behind its last.
        rows: number of rows.
    """

    number: int
    file: Path
    first: int
    stop: int
    rows: int

    def read(self, *columns: str) -> Iterator[list[list[Any]]]:
        """Batches of the rows, as lists of values in the order of `columns`.

        Raises:
            InputError: the file is damaged.
        """
        size = _BATCH_IMAGES if "image" in columns else _BATCH_ROWS
        for group in range(self.first, self.stop):
            yield from tables.iterate(self.file, columns, size, group)


def pairs_files(pairs: Path, split: str) -> list[Path]:
    """The files of a split: `pairs` itself, or those in the folder `pairs`, in their order.

    Raises:
        InputError: there are none.
    """
    files = parquet.split_files(pairs)
    if pairs.is_file():
        return files["train"]
    if split not in files:
        raise InputError(f"{pairs} has no split {split!r}; it has {', '.join(files)}: choose one by --split")
    return files[split]


def cut(files: Sequence[Path], part_rows: int) -> list[Part]:
    """The rows of the pairs files in parts of `part_rows` rows, or a little more: row groups stay whole.

    Raises:
        InputError: a file is no pairs file, or it is damaged.
    """
    parts: list[Part] = []
    for file in files:
        metadata = tables.check_table(file, "pairs file", {name: tables.KINDS[name] for name in COLUMNS})
        first = rows = 0
        for group in range(metadata.num_row_groups):
            rows += metadata.row_group(group).num_rows
            if rows and (rows >= part_rows or group == metadata.num_row_groups - 1):
                parts.append(Part(len(parts), file, first, group + 1, rows))
                first, rows = group + 1, 0
    return parts


def check_keys(stage: Stage, parts: Sequence[Part]) -> None:
    """Make sure, once, that no two rows of the corpus have one key.

    Raises:
        InputError: two rows have one key, or a file is damaged.
    """
    from mofi_lightning.data.keys import SeenKeys

    checked = stage.folder / "keys.json"
    if checked.exists():
        return
    seen = SeenKeys()

    def check(part: Part) -> int:
        for (keys,) in part.read("key"):
            if (key := seen.add(keys)) is not None:
                raise InputError(f"key {key!r} comes twice in pairs file {part.file}; keys must be unique")
        return part.rows

    total = sum(part.rows for part in parts)
    for _ in track_rows(map(check, parts), "checking keys", total):
        pass
    with atomic(checked) as file:
        file.write_text(json.dumps({"unique keys": total}) + "\n")
