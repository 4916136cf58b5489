"""Hierarchies of categories, from a table or from WordNet's files."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from mofi_lightning.sources.tables import Kind, check_table, iterate
from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)

_COLUMNS = ("entity", "category")
_WAY_OUT = (
    "a hierarchy has the columns entity and category, a line for each category that an entity belongs to"
)
# pointers to a hypernym of a class and of an instance (wninput(5WN))
_HYPERNYMS = ("@", "@i")


def read_hierarchy(path: Path) -> dict[str, list[str]]:
    """What belongs to what: entity or category -> the categories directly above it.

    Args:
        path: a CSV, TSV (with a header) or parquet file with the columns entity and category, several lines
            an entity where it belongs to several; or WordNet's folder with data.noun, in which an id is `n`
            and the eight digits of the synset. ImageNet's ids are of WordNet 3.0; 3.1 has others.

    Raises:
        InputError: no such file, or not of this form. A cycle is only warned of: distances are hops in either
            direction, to which it does no harm.
    """
    path = Path(path)
    if path.is_dir():
        pairs = _wordnet(path)
    elif path.suffix == ".parquet":
        check_table(path, "hierarchy", dict.fromkeys(_COLUMNS, Kind.KEY), _WAY_OUT)
        pairs = (
            (entity, category)
            for e, c in iterate(path, list(_COLUMNS), 65_536)
            for entity, category in zip(e, c, strict=True)
        )
    elif path.suffix in (".csv", ".tsv"):
        pairs = _table(path)
    else:
        raise InputError(
            f"hierarchy {path} is no .csv, .tsv or .parquet file, and no folder of WordNet; {_WAY_OUT}"
        )
    parents = _collect(path, pairs)
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        _log.warning("hierarchy %s has a cycle: %s", path, " > ".join(reversed(error.args[1])))
    return parents


def _collect(path: Path, pairs: Iterable[tuple[str | None, str | None]]) -> dict[str, list[str]]:
    parents: dict[str, list[str]] = {}
    for number, (entity, category) in enumerate(pairs, 1):
        if not entity or not category:
            raise InputError(
                f"entry {number} of hierarchy {path} has no {'category' if entity else 'entity'}; {_WAY_OUT}"
            )
        above = parents.setdefault(entity, [])
        if category not in above:
            above.append(category)
    if not parents:
        raise InputError(f"hierarchy {path} is empty; {_WAY_OUT}")
    return parents


def _table(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = [name.strip() for name in next(rows, [])]
            if not set(_COLUMNS) <= set(header):
                raise InputError(f"hierarchy {path} begins with {', '.join(header) or 'nothing'}; {_WAY_OUT}")
            entity, category = map(header.index, _COLUMNS)
            for row in rows:
                if len(row) not in (0, len(header)):
                    raise InputError(
                        f"line {rows.line_num} of hierarchy {path} has {len(row)} fields, not {len(header)}"
                    )
                if row:
                    yield row[entity].strip(), row[category].strip()
    except OSError as error:
        raise InputError(f"no hierarchy at {path} ({error.strerror}); {_WAY_OUT}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"hierarchy {path} is no UTF-8 table ({error}); {_WAY_OUT}") from error


def _wordnet(folder: Path) -> Iterator[tuple[str, str]]:
    """Hypernyms of nouns, after wndb(5WN).

    A line of data.noun is OFFSET FILE n WORDS (WORD ID)... POINTERS (POINTER OFFSET KIND SOURCE)... | GLOSS;
    WORDS is hexadecimal.
    """
    file = next((f for f in (folder / "data.noun", folder / "dict" / "data.noun") if f.is_file()), None)
    if file is None:
        raise InputError(f"folder {folder} is no hierarchy: it has no data.noun, as WordNet's has")
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith("  ") or not line:  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        try:
            first = 4 + 2 * int(fields[3], 16)
            last = first + 1 + 4 * int(fields[first])
            if fields[2] != "n" or len(fields) != last:
                raise ValueError
        except (IndexError, ValueError) as error:
            raise InputError(f"line {number} of {file} is no noun of WordNet: {line[:60]!r}") from error
        for at in range(first + 1, last, 4):
            if fields[at] in _HYPERNYMS:
                yield f"n{fields[0]}", f"n{fields[at + 1]}"
