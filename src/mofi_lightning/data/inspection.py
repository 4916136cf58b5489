"""The verbs `mofi data stats` and `mofi data verify`: what a data set holds, and whether it is intact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mofi_lightning.data.schema import Row
from mofi_lightning.progress import track
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.data.shards import DatasetInfo

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_MOST_NAMED = 10


def stats(path: Path) -> None:
    """Print what a data set holds: rows, entities, labelled share, image sizes and text lengths.

    Args:
        path: folder of the data set.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from mofi_lightning.data.shards import open_dataset

    info = open_dataset(path)
    measures: dict[str, list[int]] = {
        name: []
        for name in ("image width", "image height", "image bytes", "text characters", "entities a row")
    }
    bad = 0
    faults: Counter[str] = Counter()
    for checked in _check(info, "reading rows"):
        bad += bool(checked.faults)
        faults.update(checked.faults)
        if checked.row is not None:
            measures["image bytes"].append(len(checked.row.image))
            measures["text characters"].append(len(checked.row.text))
            measures["entities a row"].append(len(checked.row.entities))
        if checked.size is not None:
            measures["image height"].append(checked.size[0])
            measures["image width"].append(checked.size[1])
    labelled = sum(count > 0 for count in measures["entities a row"])
    console = Console()
    console.print(f"{path}: {info.rows:,} rows with {', '.join(sorted(info.fields))}")
    if info.vocabulary is not None:
        console.print(
            f"{len(info.vocabulary):,} entities; {labelled / info.rows:.1%} of the rows have one or more"
        )
    if bad:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in faults.items())
        console.print(f"{bad:,} rows are bad ({kinds}): `mofi data verify` names them")
    table = Table("", *(f"{quantile:.0%}" for quantile in _QUANTILES), box=None)
    for name, values in measures.items():
        if values:
            table.add_row(name, *(f"{value:,.0f}" for value in np.quantile(values, _QUANTILES)))
    console.print(table)


def verify(path: Path) -> None:
    """Check a data set: chunks, checksums, that images decode, class ids, and that keys are unique.

    Args:
        path: folder of the data set.

    Raises:
        InputError: something is wrong; the message counts the faults and names the first rows.
    """
    from mofi_lightning.data.shards import open_dataset

    info = open_dataset(path)
    bad = 0
    named: list[str] = []
    for checked in _check(info, "verifying"):
        bad += bool(checked.faults)
        if checked.faults and bad <= _MOST_NAMED:
            named.append(f"{checked.name} ({', '.join(checked.faults)})")
    if bad:
        listing = ", ".join([*named, *(["..."] if bad > _MOST_NAMED else [])])
        raise InputError(
            f"{path}: {bad:,} of {info.rows:,} rows are bad: {listing}; build the data set again"
        )
    print(f"{path}: {info.rows:,} rows are intact")


class _Checked(NamedTuple):
    """A row, as far as it can be read, with its image's height and width and the kinds of its faults."""

    name: str
    row: Row | None
    size: tuple[int, int] | None
    faults: list[str]


def _check(info: DatasetInfo, title: str) -> Iterator[_Checked]:
    """Every row of a data set with what is wrong with it."""
    from mofi_lightning.data.shards import CorruptRow, ShardReader
    from mofi_lightning.encoders.decoding import UndecodableImage, decode

    reader = ShardReader(info)
    classes = len(info.vocabulary) if info.vocabulary is not None else 0
    keys: set[str] = set()
    for index in track(range(len(reader)), title, len(reader)):
        try:
            row = reader[index]
        except CorruptRow as error:
            yield _Checked(f"row {index} {error.key!r}", None, None, ["checksum"])
            continue
        size: tuple[int, int] | None = None
        faults = []
        try:
            _, height, width = decode(row.image).shape
            size = height, width
        except UndecodableImage:
            faults.append("image")
        if any(not 0 <= entity < classes for entity in row.entities):
            faults.append(f"class id beyond the {classes} entities")
        if row.key in keys:
            faults.append("key used twice")
        keys.add(row.key)
        yield _Checked(repr(row.key), row, size, faults)
