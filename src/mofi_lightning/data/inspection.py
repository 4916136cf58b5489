"""The verb `mofi data verify`: whether a data set is intact, and a clean copy of what is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mofi_lightning.data.scanning import Block, scan
from mofi_lightning.pages import exposed
from mofi_lightning.progress import track
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.data.keys import SeenKeys
    from mofi_lightning.data.schema import Row
    from mofi_lightning.data.shards import DatasetInfo, ShardReader

_MOST_NAMED = 10
_MOST_OF_A_KEY = 200


def verify(path: str, clean: Path | None = None, num_workers: int | None = None) -> None:
    """Check a data set: chunks, checksums, that images decode, class ids, and that keys are unique.

    All that is wrong is printed as it is found, a line each. The rows of a chunk that is missing or has
    another size count as lost. With --clean the intact rows are then written to a new data set, in their
    order and with the same vocabulary; the old one stays as it is.

    Args:
        path: folder or URI of the data set.
        clean: folder to make for the intact rows; it must not exist yet or be empty.
        num_workers: processes that check; by default one for each core.

    Raises:
        InputError: something is wrong and no clean copy was asked for, or none can be made; the message
            counts the bad rows and names the first faults.
    """
    from mofi_lightning.data.shards import open_dataset
    from mofi_lightning.data.writing import refuse_existing

    if clean is not None:
        refuse_existing(clean)
    info = open_dataset(path)
    findings = _check(info, num_workers)
    if clean is not None:
        _write_clean(info, findings, clean)
    elif findings.faults:
        named = ", ".join([*findings.first, *(["..."] if findings.faults > _MOST_NAMED else [])])
        raise InputError(
            f"{path}: {findings.bad:,} of {info.rows:,} rows are bad: {named}; build the data set again, or "
            "write its intact rows with --clean FOLDER"
        )
    else:
        print(f"{path}: {info.rows:,} rows are intact")


class _Findings:
    """What is wrong with a data set; printed as it is added.

    Attributes:
        first: the first faults, in words.
        faults: number of faults.
        bad: number of rows that are bad or lost.
        rows: the bad ones in chunks that can be read.
        chunks: the chunks that cannot be read.
        obstacle: why no clean copy can be made; empty if one can.
    """

    def __init__(self) -> None:
        self.first: list[str] = []
        self.faults = 0
        self.bad = 0
        self.rows: set[int] = set()
        self.chunks: set[int] = set()
        self.obstacle = ""
        # A progress bar takes sys.stdout over and shows what is printed above itself, on standard error:
        # right for a terminal, but lost for a file.
        self._file = None if sys.stdout.isatty() else sys.stdout

    def add(self, fault: str) -> None:
        """Add what is no fault of a row."""
        self.faults += 1
        if self.faults <= _MOST_NAMED:
            self.first.append(fault)
        print(fault, file=self._file, flush=True)

    def add_chunk(self, chunk: int, rows: int, fault: str) -> None:
        """Add a chunk that cannot be read."""
        if chunk not in self.chunks:
            self.chunks.add(chunk)
            self.bad += rows
            self.add(f"{fault} (its {rows:,} rows are lost)")

    def add_row(self, row: int, key: str, chunk: str, faults: Sequence[str]) -> None:
        """Add a bad row."""
        self.rows.add(row)
        self.bad += 1
        self.add(f"row {row} '{exposed(key, _MOST_OF_A_KEY)}' in {chunk} ({', '.join(faults)})")


class _Checked(NamedTuple):
    """A row: its key and checksum as far as it can be read, and what is wrong with it alone."""

    key: str
    checksum: int | None
    faults: list[str]


class _CheckedBlock(NamedTuple):
    """The rows of a block, or why its chunk could not be fetched."""

    block: Block
    rows: list[_Checked]
    unread: str = ""


def _check(info: DatasetInfo, num_workers: int | None) -> _Findings:
    from mofi_lightning.data import vocabulary as vocabularies
    from mofi_lightning.data.keys import SeenKeys
    from mofi_lightning.data.schema import Fingerprint
    from mofi_lightning.data.shards import ShardReader
    from mofi_lightning.data.storage import is_remote

    # an info of its own, because the processes need not be handed the vocabulary
    reader = ShardReader(replace(info), check=False)
    findings = _Findings()
    classes: int | None = 0
    try:
        classes = len(info.vocabulary) if info.vocabulary is not None else 0
    except InputError as error:
        findings.add(str(error))
        findings.obstacle, classes = str(error), None
    if not is_remote(info.location):
        for chunk, fault in reader.chunk_faults().items():
            findings.add_chunk(chunk, int(reader.chunk_sizes[chunk]), fault)
    keys = SeenKeys()
    fingerprint: Fingerprint | None = Fingerprint() if not findings.chunks and classes is not None else None
    blocks = scan(
        reader, partial(_check_block, classes), frozenset(findings.chunks), num_workers, "verifying"
    )
    for block, rows, unread in blocks:
        if unread:
            findings.add_chunk(block.chunk, int(reader.chunk_sizes[block.chunk]), unread)
            findings.obstacle, fingerprint = unread, None
        intact = [row.key for row in rows if not row.faults]
        repeated = _repeated(keys, intact)
        for index, row in enumerate(rows, block.first):
            if fingerprint is not None and row.checksum is not None:
                fingerprint.add(row.checksum.to_bytes(4, "little"))
            elif row.checksum is None:
                fingerprint = None
            faults = row.faults or (["key used twice"] if next(repeated) else [])
            if faults:
                findings.add_row(index, row.key, reader.chunk_names[block.chunk], faults)
    vocabulary = info.path / vocabularies.FILE_NAME if "entity" in info.fields else None
    if fingerprint is not None and fingerprint.text(vocabulary) != info.fingerprint:
        findings.add("rows or entities are not those of which dataset.json has the fingerprint")
    return findings


def _check_block(classes: int | None, reader: ShardReader, block: Block) -> _CheckedBlock:
    from mofi_lightning.data.shards import CorruptRow
    from mofi_lightning.encoders.decoding import UndecodableImage, decode

    rows = []
    for index in range(block.first, block.stop):
        try:
            row = reader[index]
        except CorruptRow as error:
            rows.append(_Checked(error.key, None, ["checksum"]))
            continue
        except InputError as error:
            return _CheckedBlock(block, [], str(error))
        faults = []
        try:
            decode(row.image)
        except UndecodableImage as error:
            faults.append(f"image: {error}")
        if classes is not None and any(not 0 <= entity < classes for entity in row.entities):
            wrong = next(entity for entity in row.entities if not 0 <= entity < classes)
            faults.append(f"class id {wrong} beyond the {classes:,} entities")
        rows.append(_Checked(row.key, reader.checksum(index, row), faults))
    return _CheckedBlock(block, rows)


def _repeated(keys: SeenKeys, block: Sequence[str]) -> Iterator[bool]:
    """Whether each key has come before."""
    if keys.add(block) is None:
        return iter([False] * len(block))
    return iter([keys.add([key]) is not None for key in block])


def _write_clean(info: DatasetInfo, findings: _Findings, output: Path) -> None:
    from mofi_lightning.data.writing import write_dataset

    if findings.obstacle:
        raise InputError(f"no clean copy of {info.location} can be made: {findings.obstacle}")
    left = info.rows - findings.bad
    if not left:
        raise InputError(f"none of the {info.rows:,} rows of {info.location} is intact; build it again")
    write_dataset(track(_intact(info, findings), "writing", left), output, info.vocabulary)
    print(f"left out {findings.bad:,} of {info.rows:,} rows; {left:,} rows -> {output}")


def _intact(info: DatasetInfo, findings: _Findings) -> Iterator[Row]:
    from mofi_lightning.data.shards import ShardReader

    reader = ShardReader(info, check=False)
    for chunk in range(len(reader.chunk_sizes)):
        if chunk not in findings.chunks:
            rows = range(int(reader.first_rows[chunk]), int(reader.first_rows[chunk + 1]))
            yield from (reader[row] for row in rows if row not in findings.rows)
