"""The verbs `mofi data stats` and `mofi data verify`: what a data set holds, and whether it is intact."""

from __future__ import annotations

from pathlib import Path

from mofi_lightning.types import InputError

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_MOST_NAMED = 10


def stats(path: Path) -> None:
    """Print what a data set holds: rows, entities, labelled share, image sizes and text lengths.

    Args:
        path: folder of the data set.
    """
    import io

    import numpy as np
    from PIL import Image
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from mofi_lightning.data.shards import ShardReader, open_dataset

    info = open_dataset(path)
    reader = ShardReader(info)
    measures: dict[str, list[int]] = {
        name: []
        for name in ("image width", "image height", "image bytes", "text characters", "entities a row")
    }
    damaged = undecodable = 0
    for index in track(range(len(reader)), "reading rows", transient=True):
        try:
            row = reader[index]
        except InputError:
            damaged += 1
            continue
        measures["image bytes"].append(len(row.image))
        measures["text characters"].append(len(row.text))
        measures["entities a row"].append(len(row.entities))
        try:
            width, height = Image.open(io.BytesIO(row.image)).size  # reads the header only
        except Exception:  # Pillow's parsers raise many kinds on damaged headers
            undecodable += 1
            continue
        measures["image width"].append(width)
        measures["image height"].append(height)
    labelled = sum(count > 0 for count in measures["entities a row"])
    console = Console()
    console.print(f"{path}: {info.rows:,} rows with {', '.join(sorted(info.fields))}")
    if info.vocabulary is not None:
        console.print(
            f"{len(info.vocabulary):,} entities; {labelled / info.rows:.1%} of the rows have one or more"
        )
    if damaged or undecodable:
        console.print(
            f"{damaged:,} damaged rows, {undecodable:,} unreadable images: `mofi data verify` names them"
        )
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
    from rich.progress import track

    from mofi_lightning.data.shards import CorruptRow, ShardReader, open_dataset
    from mofi_lightning.encoders.decoding import UndecodableImage, decode

    info = open_dataset(path)
    reader = ShardReader(info)
    classes = len(info.vocabulary) if info.vocabulary is not None else 0
    faults: list[str] = []
    keys: set[str] = set()
    for index in track(range(len(reader)), "verifying", transient=True):
        try:
            row = reader[index]
        except CorruptRow as error:
            faults.append(f"row {index} {error.key!r} (checksum)")
            continue
        try:
            decode(row.image)
        except UndecodableImage:
            faults.append(f"{row.key!r} (image)")
        if any(not 0 <= entity < classes for entity in row.entities):
            faults.append(f"{row.key!r} (class id beyond the {classes} entities)")
        if row.key in keys:
            faults.append(f"{row.key!r} (key used twice)")
        keys.add(row.key)
    if faults:
        named = ", ".join(faults[:_MOST_NAMED]) + (", ..." if len(faults) > _MOST_NAMED else "")
        raise InputError(
            f"{path}: {len(faults):,} of {info.rows:,} rows are bad: {named}; build the data set again"
        )
    print(f"{path}: {info.rows:,} rows are intact")
