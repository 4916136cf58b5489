"""Folders that litdata has written: which there are, and reading them.

The chunks are not read by litdata, which would decode JPEG files, unpickle whatever an index calls a pickle,
and wait for minutes for a chunk that is not there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mofi_lightning.sources.tables import Kind
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa

# litdata's formats that hold what is wanted as it was given
FORMATS = {
    Kind.IMAGE: ("bytes", "jpeg", "image", "file"),
    Kind.TEXT: ("str", "text"),
    Kind.ANY_KEY: ("str", "text", "int"),
}
# a chunk of plain values ends with an Arrow file, the number of its bytes and this
_ARROW_END = b"LDARW01\0"


class Field(NamedTuple):
    """A field that is read, the option that names it, and what it must hold."""

    option: str
    field: str
    kind: Kind

    def wrong(self, place: Path, found: object) -> InputError:
        """The error for a field of `place` that is something else."""
        return InputError(
            f"field {self.field!r} of {place} is {found}, not {self.kind.value}; name the right one with "
            f"--{self.option}"
        )


@dataclass(frozen=True)
class LitDataFolder:
    """What an index says.

    Attributes:
        path: the folder.
        chunks: rows of each chunk, by file.
        fields: names of the values that a row holds, in order; dotted where dictionaries are nested.
        formats: of the values, as litdata calls them.
    """

    path: Path
    chunks: dict[Path, int]
    fields: list[str]
    formats: list[str]

    def format(self, field: str) -> str:
        """Format of a field; empty if there is no such field."""
        return dict(zip(self.fields, self.formats, strict=True)).get(field, "")

    def check(self, wanted: Sequence[Field]) -> None:
        """Raise InputError if the first row lacks a field or holds something else in one."""
        for one in wanted:
            if one.field not in self.fields:
                raise InputError(
                    f"{self.path} has no field {one.field!r} (it has {', '.join(self.fields)}); "
                    f"name the right one with --{one.option}"
                )
        next(self.rows(wanted), None)

    def rows(self, wanted: Sequence[Field]) -> Iterator[list[Any]]:
        """The wanted values of each row.

        Raises:
            InputError: a chunk is damaged, or a field holds something else than what is wanted.
        """
        import pyarrow as pa

        for file, rows in self.chunks.items():
            row = 0
            try:
                for values in self._arrow_rows(file, wanted) if _is_arrow(file) else self._rows(file, wanted):
                    yield values
                    row += 1
                if row != rows:
                    raise ValueError(f"{row} rows, not {rows}")
            except InputError:
                raise
            except (OSError, ValueError, LookupError, struct.error, pa.ArrowException) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{file} cannot be read after row {row} ({reason}); write it anew"
                ) from error

    def _rows(self, file: Path, wanted: Sequence[Field]) -> Iterator[list[Any]]:
        """Of a chunk in litdata's own form: rows, offsets; then of each row sizes of values, values."""
        values = [self.fields.index(one.field) for one in wanted]
        formats = [self.formats[value].partition(":")[0] for value in values]
        for one, name in zip(wanted, formats, strict=True):
            if name not in FORMATS[one.kind]:
                raise one.wrong(self.path, f"stored as {name!r}")
        head = struct.Struct(f"<{len(self.fields)}I")
        with file.open("rb") as chunk:
            rows, size = self.chunks[file], file.stat().st_size
            count, *offsets = struct.unpack(f"<{rows + 2}I", chunk.read(4 * (rows + 2)))
            if count != rows or offsets[-1] != size or offsets != sorted(offsets):
                raise ValueError(f"its header is not that of {rows} rows in {size} bytes")
            for begin, end in pairwise(offsets):
                chunk.seek(begin)
                starts = [*accumulate(head.unpack(chunk.read(head.size)), initial=begin + head.size)]
                if starts[-1] != end:
                    raise ValueError("its sizes do not add up")
                row = []
                for value, name in zip(values, formats, strict=True):
                    chunk.seek(starts[value])
                    row.append(_parse(chunk.read(starts[value + 1] - starts[value]), name))
                yield row

    def _arrow_rows(self, file: Path, wanted: Sequence[Field]) -> Iterator[list[Any]]:
        import pyarrow as pa

        with pa.memory_map(str(file)) as chunk:
            end = chunk.size() - len(_ARROW_END) - 4
            chunk.seek(end)
            (size,) = struct.unpack("<I", chunk.read(4))
            chunk.seek(end - size)
            with pa.ipc.open_file(chunk.read_buffer(size)) as reader:
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    batch.validate(full=True)
                    columns = [_column(batch, one.field) for one in wanted]
                    for one, column in zip(wanted, columns, strict=True):
                        if not one.kind.accepts(column.type):
                            raise one.wrong(self.path, column.type)
                    # one by one: a batch may be larger than the memory
                    for values in zip(*columns, strict=True):
                        yield [value.as_py() for value in values]


def find_folders(path: Path) -> dict[str, Path]:
    """The folder with the index of each split.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        raise InputError(f"no folder at {path}; give one that litdata has written")
    if (shards := _shards(path)) is not None:
        return {"train": shards}
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != ".")
    splits = {folder.name: shards for folder in folders if (shards := _shards(folder)) is not None}
    if not splits:
        raise InputError(f"neither {path} nor its folders hold an index.json; give what litdata has written")
    return splits


def read_folder(path: Path) -> LitDataFolder:
    """What the index in `path` says.

    Raises:
        InputError: it is not of dictionaries, compressed or encrypted, or a chunk is missing or has not the
            size that it says.
    """
    file = path / "index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        config = index["config"]
        chunks = {path / chunk["filename"]: chunk for chunk in index["chunks"]}
        rows = {file: int(chunk["chunk_size"]) for file, chunk in chunks.items()}
        sizes = {file: int(chunk["chunk_bytes"]) for file, chunk in chunks.items()}
        fields = [*_names(json.loads(config["data_spec"])[1])]
        formats = [str(name) for name in config["data_format"]]
        obstacle = next((name for name in ("compression", "encryption") if config.get(name)), None)
        loader = config.get("item_loader") or "PyTreeLoader"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{file} is damaged, or not written by litdata for dictionaries; write it anew"
        ) from error
    if obstacle:
        raise InputError(f"{path} was written with {obstacle} {config[obstacle]!r}; write it without")
    if loader != "PyTreeLoader" or len(fields) != len(formats) or any(one.parent != path for one in chunks):
        raise InputError(
            f"{file} is not of dictionaries that litdata has optimized ({loader}); write it anew"
        )
    for chunk, size in sizes.items():
        found = chunk.stat().st_size if chunk.is_file() else None
        # older litdata did not count the offsets
        if found not in (size, size + 4 * (rows[chunk] + 2)):
            state = "is missing" if found is None else f"has {found:,} of {size:,} bytes"
            raise InputError(f"chunk {chunk} {state}; copy or write the folder again")
    return LitDataFolder(path, rows, fields, formats)


def _shards(folder: Path) -> Path | None:
    places = [folder, *([folder / "shards"] if (folder / "dataset.json").is_file() else [])]
    return next((place for place in places if (place / "index.json").is_file()), None)


def _names(spec: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of the values of a row, in their order."""
    if spec["type"] is None:
        yield prefix
        return
    children = spec["children_spec"]
    names = json.loads(spec["context"]) if spec["type"] == "builtins.dict" else range(len(children))
    for name, child in zip(names, children, strict=True):
        yield from _names(child, f"{prefix}.{name}" if prefix else str(name))


def _is_arrow(file: Path) -> bool:
    with file.open("rb") as chunk:
        chunk.seek(max(0, file.stat().st_size - len(_ARROW_END)))
        return chunk.read() == _ARROW_END


def _parse(value: bytes, name: str) -> Any:
    if name in ("str", "text"):
        return value.decode()
    return int.from_bytes(value, "little", signed=True) if name == "int" else value


def _column(batch: pa.RecordBatch, field: str) -> pa.Array:
    import pyarrow.compute as pc

    name, *inner = field.split(".")
    column = batch.column(name)
    for part in inner:
        column = pc.struct_field(column, part)
    return column
