"""The parquet files of pairs, truth and knowledge base: checked before they are used, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# the row groups of others can be larger than the memory: column chunks are read in pieces of this size, and
# pyarrow's pre_buffer, which would read a row group whole, is off
_BUFFER_BYTES = 2**20


class Kind(Enum):
    """What a column holds; the values are for messages. A column of nothing but nulls has no keys."""

    KEY = "keys (string)"
    ANY_KEY = "keys (string or integer)"
    IMAGE = "encoded images (binary)"
    STORED_IMAGE = "encoded images (binary, or a struct with bytes)"
    TEXT = "texts (string)"
    TEXTS = "lists of texts (list of string)"
    VECTOR = "vectors (list of float)"

    def accepts(self, found: pa.DataType) -> bool:
        """Whether a column of the type `found`, or a dictionary of it, holds this."""
        from pyarrow import types

        if types.is_dictionary(found):
            found = found.value_type
        is_string = types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)
        match self:
            case Kind.KEY:
                return is_string
            case Kind.ANY_KEY:
                return is_string or types.is_integer(found)
            case Kind.TEXT:
                return is_string or types.is_null(found)
            case Kind.TEXTS:
                is_list = types.is_list(found) or types.is_large_list(found)
                return types.is_null(found) or (is_list and Kind.TEXT.accepts(found.value_type))
            case Kind.IMAGE:
                is_binary = types.is_binary(found) or types.is_large_binary(found)
                return is_binary or types.is_binary_view(found) or types.is_null(found)
            case Kind.STORED_IMAGE:
                names = [field.name for field in found.fields] if types.is_struct(found) else []
                return Kind.IMAGE.accepts(found.field("bytes").type if "bytes" in names else found)
            case Kind.VECTOR:
                is_list = types.is_list(found) or types.is_large_list(found)
                is_list = is_list or types.is_fixed_size_list(found)
                return is_list and types.is_floating(found.value_type)


# the columns of the files that `mofi pairs` writes
KINDS: Mapping[str, Kind] = {
    "key": Kind.KEY,
    "image": Kind.IMAGE,
    "text": Kind.TEXT,
    "split": Kind.TEXT,
    "entity": Kind.TEXT,
    "id": Kind.KEY,
    "name": Kind.TEXT,
    "aliases": Kind.TEXTS,
    "description": Kind.TEXT,
}


def check_table(
    path: Path,
    title: str,
    columns: Mapping[str, Kind],
    way_out: str = "give a parquet file as `mofi pairs` writes it",
) -> pq.FileMetaData:
    """Metadata of a parquet file that has rows and all of `columns`; the rows themselves are not read.

    Args:
        path: the file.
        title: what the file is called in errors.
        columns: name -> what the column must hold.
        way_out: what to do where the file or a column is not the right one.

    Raises:
        InputError: no such file, no parquet, no rows, or a column is missing or holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"no {title} at {path}; {way_out}")
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{title} {path} is no parquet file, or damaged ({_one_line(error)}); write or download it anew"
        ) from error
    if missing := [repr(name) for name in columns if name not in schema.names]:
        raise InputError(
            f"{title} {path} has no column {', '.join(missing)} (it has {', '.join(schema.names)}); {way_out}"
        )
    for name, kind in columns.items():
        found = schema.field(name).type
        if not kind.accepts(found):
            raise InputError(f"column {name!r} of {title} {path} is {found}, not {kind.value}; {way_out}")
    if not metadata.num_rows:
        raise InputError(f"{title} {path} has no rows; remove it or write it anew")
    return metadata


def iterate(
    path: Path,
    columns: Sequence[str],
    batch_rows: int,
    row_group: int | None = None,
    key: str | None = "key",
) -> Iterator[list[list[Any]]]:
    """Batches of the rows of a parquet file, or of one of its row groups, in the order of the file.

    Args:
        path: the file.
        columns: of the file; a name may occur twice.
        batch_rows: the most rows a batch.
        row_group: the only row group to read.
        key: the column, if it is read, in which no row may be null.

    Yields:
        The values of each of `columns`, null as None.

    Raises:
        InputError: the file is damaged at the rows it has come to, holds text that is not UTF-8, or a row
            has no key.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            groups = None if row_group is None else [row_group]
            row = sum(file.metadata.row_group(group).num_rows for group in range(row_group or 0))
            for batch in file.iter_batches(batch_rows, row_groups=groups, columns=[*dict.fromkeys(columns)]):
                values = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                if None in values.get(key or "", ()):
                    missing = row + values[key or ""].index(None)
                    raise InputError(f"{path} has no key in row {missing}; fill the column {key!r}")
                yield [values[name] for name in columns]
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read after row {row} ({_one_line(error)}); write or download it anew"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
