"""Tables of entities: JSON lines, CSV, TSV and parquet, among them the knowledge base of `mofi pairs`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mofi_lightning.curation.knowledge_bases.base import KnowledgeBaseReader
from mofi_lightning.curation.knowledge_bases.lines import lines
from mofi_lightning.sources import tables
from mofi_lightning.sources.base import Entity
from mofi_lightning.sources.tables import Kind
from mofi_lightning.types import InputError

_COLUMNS = ("id", "name", "aliases", "description", "popularity", "types")
_KINDS = {
    "id": Kind.ANY_KEY,
    "name": Kind.TEXT,
    "aliases": Kind.TEXTS,
    "description": Kind.TEXT,
    "types": Kind.TEXTS,
}
_FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
_WAY_OUT = "give a table with at least the columns id and name"
_BATCH_ROWS = 4096
# of one line of a table: its longest field is a description
_LONGEST_LINE = 1 << 20


class TableReader(KnowledgeBaseReader):
    """Entities of a table: .jsonl, .csv or .tsv (also .gz or .bz2), or .parquet.

    Its columns are id, name, and where there are any, aliases, description, popularity and types; others are
    ignored. Aliases and types are lists, or texts with a | between the values. The first line of .csv and
    .tsv names the columns; .tsv knows no quotes. The knowledge_base.parquet of `mofi pairs` is such a table.

    In a .csv, a quote that is not closed takes the lines up to the next quote with it: they are left out, as
    one fault, and reading goes on behind them.

    Args:
        path: The table.

    Raises:
        InputError: the name tells no format; when entities are read: there is no such file, it is empty or
            not of its format, or has no column id or name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        suffixes = path.suffixes
        self._format = suffixes[-2] if suffixes[-1:] in ([".gz"], [".bz2"]) and suffixes[:-1] else path.suffix
        if self._format not in _FORMATS or (self._format == ".parquet" and path.suffix != ".parquet"):
            raise InputError(
                f"{path} has none of the endings {', '.join(_FORMATS)} (also .gz or .bz2, but for parquet)"
            )

    def entities(self) -> Iterator[Entity]:
        """See `KnowledgeBaseReader`."""
        readers = {".parquet": self._parquet, ".jsonl": self._json_lines}
        for where, values in readers.get(self._format, self._separated)():
            try:
                yield _entity(values)
            except (TypeError, ValueError, OverflowError) as error:
                self.faults.add("a value of the wrong type", where, str(error))

    def count(self) -> int | None:
        """See `KnowledgeBaseReader`."""
        if self._format != ".parquet":
            return None
        return int(tables.check_table(self.path, "table", {}, _WAY_OUT).num_rows)

    def _parquet(self) -> Iterator[tuple[str, dict[str, Any]]]:
        required = {name: _KINDS[name] for name in ("id", "name")}
        metadata = tables.check_table(self.path, "table", required, _WAY_OUT)
        found = [name for name in _COLUMNS if name in metadata.schema.to_arrow_schema().names]
        tables.check_table(self.path, "table", {n: _KINDS[n] for n in found if n in _KINDS}, _WAY_OUT)
        row = 0
        for batch in tables.iterate(self.path, found, _BATCH_ROWS, key=None):
            for values in zip(*batch, strict=True):
                row += 1
                yield f"row {row:,}", dict(zip(found, values, strict=True))

    def _json_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in lines(self.path, self.faults, _LONGEST_LINE):
            where = f"line {number:,}"
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode())
            except UnicodeDecodeError as error:
                self.faults.add("not UTF-8", where, str(error))
            except ValueError as error:
                self.faults.add("no JSON", where, str(error))
            except RecursionError:
                self.faults.add("nested too deeply", where)
            else:
                if isinstance(values, dict):
                    yield where, values
                else:
                    self.faults.add("no JSON object", where)

    def _separated(self) -> Iterator[tuple[str, dict[str, Any]]]:
        is_csv = self._format == ".csv"
        rows = csv.reader(
            self._texts(),
            delimiter="," if is_csv else "\t",
            quoting=csv.QUOTE_MINIMAL if is_csv else csv.QUOTE_NONE,
            strict=True,
        )
        header: Sequence[str] = ()
        while True:
            where = f"line {rows.line_num + 1:,}"
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                self.faults.add("no row of a table", where, f"{error}; left out to line {rows.line_num:,}")
                continue
            if not header:
                header = [name.strip().lower() for name in row]
                if missing := [repr(name) for name in ("id", "name") if name not in header]:
                    raise InputError(
                        f"table {self.path} has no column {' or '.join(missing)} "
                        f"(its first line is {', '.join(row)[:80]!r}); {_WAY_OUT}"
                    )
            elif len(row) != len(header):
                if row:
                    counts = f"{len(row)} and {len(header)}"
                    self.faults.add("another number of values than of columns", where, counts)
            else:
                yield where, dict(zip(header, row, strict=True))

    def _texts(self) -> Iterator[str]:
        for number, line in lines(self.path, self.faults, _LONGEST_LINE):
            text = line.decode("utf-8", "replace")
            if "\ufffd" in text and b"\xef\xbf\xbd" not in line:
                self.faults.add("not UTF-8, with \ufffd in its place", f"line {number:,}")
            yield text


def _entity(values: dict[str, Any]) -> Entity:
    id = values.get("id")
    return Entity(
        str(id) if isinstance(id, int) and not isinstance(id, bool) else _text(id),
        _text(values.get("name")),
        _texts(values.get("aliases")),
        _text(values.get("description")),
        float(values.get("popularity") or 0),
        _texts(values.get("types")),
    )


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value or ""


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split("|")]
    if value is not None and not isinstance(value, list):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(text for text in map(_text, value or ()) if text)
