"""The verbs `mofi data build` and `mofi data tokenizer`: from pairs files to what training reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mofi_lightning.data.schema import Row
from mofi_lightning.progress import track
from mofi_lightning.types import InputError


def build_dataset(pairs: Path, output: Path) -> None:
    """Turn a pairs file into a data set of images and texts, without entities.

    Images that cannot be decoded are left out and counted.

    Args:
        pairs: parquet file that `mofi pairs` wrote, for instance pairs/train.parquet.
        output: folder to make; it must not exist yet or be empty.

    Raises:
        InputError: the pairs cannot be read, two have one key, or no image can be decoded.
    """
    from mofi_lightning.data.pairs import PairsReader
    from mofi_lightning.data.shards import refuse_existing, write_dataset
    from mofi_lightning.encoders.decoding import fault_kinds

    refuse_existing(output)
    reader = PairsReader(pairs)
    faults: list[str] = []
    rows = track(reader, "writing shards", len(reader))
    write_dataset(_decodable(rows, f"pairs file {pairs}", faults), output)
    for kind, count in fault_kinds(faults).items():
        print(f"left out {count:,}: {kind}")
    print(f"{len(reader) - len(faults):,} rows -> {output}")


def _decodable(rows: Iterable[Row], title: str, faults: list[str]) -> Iterator[Row]:
    """The rows whose images can be decoded; `faults` receives why the others cannot.

    Raises:
        InputError: a key comes twice, or no row is left.
    """
    from mofi_lightning.encoders.decoding import UndecodableImage, decode

    keys: set[str] = set()
    for row in rows:
        if row.key in keys:
            raise InputError(f"key {row.key!r} comes twice in {title}; keys must be unique")
        keys.add(row.key)
        try:
            decode(row.image)
        except UndecodableImage as error:
            faults.append(str(error))
        else:
            yield row
    if len(keys) == len(faults):
        raise InputError(
            f"none of the {len(keys):,} images of {title} can be decoded; the first: {faults[0]}"
        )


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
