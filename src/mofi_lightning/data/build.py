"""The verbs `mofi data build` and `mofi data tokenizer`: from pairs to what training reads."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mofi_lightning.data.schema import Row, checksum
from mofi_lightning.progress import track
from mofi_lightning.sources.base import Pair, Source, well_formed
from mofi_lightning.types import InputError

# number, rows and digest
_Part = tuple[int, list[Row], str]


def build_dataset(
    source: Source, output: Path, split: str | None = None, num_workers: int | None = None
) -> None:
    """Turn the pairs of `source` into a data set of images and texts, without entities.

    Images that cannot be decoded are left out and counted. The source is read in its order by one process;
    others decode the images and write the shards. The data set appears when it is complete. A build that was
    interrupted goes on where it was when the same command is given again.

    Args:
        source: where the pairs come from.
        output: folder to make; it must not exist yet or be empty.
        split: of the source; may be left out where there is only one.
        num_workers: processes that decode and write; by default one for each core.

    Raises:
        InputError: the source cannot be read, two pairs have one key, or no image can be decoded.
    """
    from mofi_lightning.data import writing
    from mofi_lightning.data.processes import available_cores
    from mofi_lightning.encoders.decoding import fault_kinds

    split = _choose(split, source)
    num_workers = available_cores() if num_workers is None else num_workers
    with writing.unfinished(output) as folder:
        pairs = track(source.pairs(split), "writing shards", source.count(split))
        written = _write_parts(_blocks(pairs, f"split {split!r} of the source"), folder, num_workers)
        if len(written.faults) == written.pairs:
            shutil.rmtree(folder, ignore_errors=True)
            if not written.pairs:
                raise InputError(f"split {split!r} of the source has no pairs")
            raise InputError(
                f"none of the {written.pairs:,} images of split {split!r} of the source can be decoded; the "
                f"first: {written.faults[0]}"
            )
        rows = writing.join_parts(folder, range(written.parts), output)
    if written.reused:
        print(f"{written.reused:,} of {written.parts:,} parts were there already, of an interrupted build")
    for kind, count in fault_kinds(written.faults).items():
        print(f"left out {count:,}: {kind}")
    if written.silent:
        print(f"{written.silent:,} of {rows:,} rows have no text")
    print(f"{rows:,} rows -> {output}")


class _Written(NamedTuple):
    """Number of pairs read, of parts, of those written before, of rows without text; faults of images."""

    pairs: int
    parts: int
    reused: int
    silent: int
    faults: list[str]


def _write_parts(blocks: Iterator[list[Row]], folder: Path, num_workers: int) -> _Written:
    """Write what is missing of the parts."""
    from mofi_lightning.data import writing
    from mofi_lightning.data.processes import map_processes

    pairs, parts, reused = 0, 0, 0

    def missing() -> Iterator[_Part]:
        nonlocal pairs, parts, reused
        for number, block in enumerate(blocks):
            pairs, parts = pairs + len(block), number + 1
            digest = _digest(block)
            notes = writing.read_notes(folder, number)
            if notes is not None and notes["digest"] == digest:
                reused += 1
            else:
                yield number, block, digest

    for _ in map_processes(partial(_write, folder), missing(), num_workers):
        pass
    faults: list[str] = []
    silent = 0
    for number in range(parts):
        notes = writing.read_notes(folder, number)
        if notes is None:
            raise InputError(f"part {number} in {folder} was removed meanwhile; give the command again")
        faults += notes["faults"]
        silent += notes["silent"]
    return _Written(pairs, parts, reused, silent, faults)


def _write(folder: Path, part: _Part) -> None:
    """Write the rows of a part whose images can be decoded; its notes say what was wrong with the others."""
    from mofi_lightning.data.writing import write_part
    from mofi_lightning.encoders.decoding import UndecodableImage, decode

    number, block, digest = part
    good, faults = [], []
    for row in block:
        try:
            decode(row.image)
        except UndecodableImage as error:
            faults.append(str(error))
        else:
            good.append(row)
    silent = sum(not row.text.strip() for row in good)
    write_part(folder, number, good, 0, {"digest": digest, "faults": faults, "silent": silent})


def _digest(block: Sequence[Row]) -> str:
    """Of what was read for a part: only a part of the same rows need not be written again."""
    digest = hashlib.blake2b(digest_size=16)
    for place, row in enumerate(block):
        digest.update(checksum(row, 0, place).to_bytes(4, "little"))
    return digest.hexdigest()


def _choose(split: str | None, source: Source) -> str:
    splits = list(source.splits)
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        given = "several" if split is None else f"no {split!r}"
        raise InputError(f"the source has {given} splits; choose one by --split: {', '.join(splits)}")
    return split


def _blocks(pairs: Iterable[Pair], title: str) -> Iterator[list[Row]]:
    """The pairs of one part after the other.

    Raises:
        InputError: a key comes twice.
    """
    from mofi_lightning.data import writing
    from mofi_lightning.data.keys import SeenKeys

    keys = SeenKeys()
    rows = (Row(well_formed(pair.key), pair.image, well_formed(pair.text)) for pair in pairs)
    for block in writing.blocks(rows):
        if (key := keys.add([row.key for row in block])) is not None:
            raise InputError(f"key {key!r} comes twice in {title}; keys must be unique")
        yield block


def train_tokenizer(pairs: Path, output: Path, vocab_size: int = 8192) -> None:
    """Train a byte-pair tokenizer on the training texts and the knowledge base of a pairs folder.

    Args:
        pairs: folder that `mofi pairs` wrote: train.parquet and, if there is one, knowledge_base.parquet.
        output: tokenizer.json file to write, or the folder to write it into.
        vocab_size: the most tokens it may have.
    """
    from mofi_lightning.encoders.tokenizer import FILE_NAME, Tokenizer

    file = output if output.suffix == ".json" else output / FILE_NAME
    tokenizer = Tokenizer.train(_texts(pairs), vocab_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(file)
    print(f"{tokenizer.vocab_size:,} tokens -> {file}")


def _texts(pairs: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    file = pairs / "train.parquet"
    if not file.is_file():
        raise InputError(f"no texts to train on: {file} does not exist; `mofi pairs` writes it")
    for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
        yield from filter(None, batch.column(0).to_pylist())
    knowledge_base = pairs / "knowledge_base.parquet"
    if knowledge_base.is_file():
        columns = ["name", "aliases", "description"]
        for batch in pq.ParquetFile(knowledge_base).iter_batches(columns=columns):
            for entity in batch.to_pylist():
                yield from filter(None, [entity["name"], *(entity["aliases"] or []), entity["description"]])
