"""Writing a source as a pairs folder: parquet files that curation and training read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from mofi_lightning.progress import track
from mofi_lightning.sources.base import Source, well_formed
from mofi_lightning.types import InputError

_PAIRS = pa.schema([("key", pa.string()), ("image", pa.binary()), ("text", pa.string())])
_TRUTH = pa.schema([(name, pa.string()) for name in ("key", "split", "entity", "name", "description")])
_KNOWLEDGE_BASE = pa.schema(
    [
        ("id", pa.string()),
        ("name", pa.string()),
        ("aliases", pa.list_(pa.string())),
        ("description", pa.string()),
    ]
)
# a row group ends at whichever comes first
_GROUP_ROWS = 1_000
_GROUP_BYTES = 32 * 2**20


def write_pairs(source: Source, output: Path) -> None:
    """Write the pairs of `source` to the folder `output`.

    Writes one `{split}.parquet` a split (key, image, text), `knowledge_base.parquet` (id, name, aliases,
    description) if the source brings one, and `truth.parquet` (key, split, entity, name, description) if it
    knows what the images really show. A file appears whole or not at all; a second run writes what is
    missing. The keys of all pairs are held in memory.

    Args:
        source: where the pairs come from.
        output: folder to write; created if missing.

    Raises:
        InputError: the source cannot be read, has a split without pairs, or repeats a key.
    """
    console = Console()
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give --output a folder")
    output.mkdir(parents=True, exist_ok=True)
    knowledge_base = output / "knowledge_base.parquet"
    if not knowledge_base.exists() and (entities := list(source.entities())):
        with _writer(knowledge_base, _KNOWLEDGE_BASE) as writer:
            writer.write_table(pa.Table.from_pylist([e._asdict() for e in entities], schema=_KNOWLEDGE_BASE))
    missing = [split for split in source.splits if not _split_file(output, split).exists()]
    # a split's truth waits in a part of its own until every split is written
    if not missing and not any(_truth_part(output, split).exists() for split in source.splits):
        console.print(f"{output} is complete and stays as it is; remove it to write it anew")
        return

    split_of_key: dict[str, str] = {}
    for split in source.splits:
        if split not in missing:
            split_of_key.update(dict.fromkeys(_keys(_split_file(output, split)), split))
    for split in missing:
        _write_split(source, split, output, split_of_key)
    _merge_truth(output, source.splits)

    for split in source.splits:
        console.print(f"{split}: {pq.read_metadata(_split_file(output, split)).num_rows:,} pairs")
    if knowledge_base.exists():
        console.print(f"knowledge base: {pq.read_metadata(knowledge_base).num_rows:,} entities")


def _write_split(source: Source, split: str, output: Path, split_of_key: dict[str, str]) -> None:
    # the truth first: a split that is there has its truth
    truth: list[dict[str, str]] = []
    keys_before = len(split_of_key)
    with _writer(_split_file(output, split), _PAIRS) as writer:
        rows: list[dict[str, object]] = []
        size = 0
        for pair in track(source.pairs(split), f"pairs: {split}", source.count(split)):
            pair = pair._replace(key=well_formed(pair.key), text=well_formed(pair.text))
            if pair.key in split_of_key:
                raise InputError(
                    f"key {pair.key!r} comes twice ({split_of_key[pair.key]}, {split}); keys must be unique"
                )
            split_of_key[pair.key] = split
            rows.append({"key": pair.key, "image": pair.image, "text": pair.text})
            size += len(pair.image)
            if pair.entity is not None:
                shown = {"name": pair.entity.name, "description": pair.entity.description}
                truth.append({"key": pair.key, "split": split, "entity": pair.entity.id, **shown})
            if len(rows) == _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema=_PAIRS))
                rows, size = [], 0
        if len(split_of_key) == keys_before:
            raise InputError(f"split {split!r} of the source has no pairs")
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=_PAIRS))
        if truth:
            with _writer(_truth_part(output, split), _TRUTH) as part:
                part.write_table(pa.Table.from_pylist(truth, schema=_TRUTH))


def _merge_truth(output: Path, splits: Iterable[str]) -> None:
    parts = {s: _truth_part(output, s) for s in splits if _truth_part(output, s).exists()}
    if not parts:
        return
    tables = [pq.read_table(part) for part in parts.values()]
    target = output / "truth.parquet"
    if target.exists():
        old = pq.read_table(target)
        tables.insert(0, old.filter(pc.invert(pc.is_in(old["split"], pa.array(list(parts))))))
    with _writer(target, _TRUTH) as writer:
        writer.write_table(pa.concat_tables(tables))
    for part in parts.values():
        part.unlink()


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes beside `path` and renames at the end, so that `path` is whole or absent."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    # images neither compress nor repeat
    try:
        with pq.ParquetWriter(unfinished, schema, use_dictionary=["text"], write_statistics=False) as writer:
            yield writer
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _keys(path: Path) -> Iterator[str]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(columns=["key"]):
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no pairs file ({reason}); remove it and run again") from error


def _split_file(output: Path, split: str) -> Path:
    return output / f"{split}.parquet"


def _truth_part(output: Path, split: str) -> Path:
    return output / f".truth-{split}.parquet"
