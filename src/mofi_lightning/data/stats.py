"""The verb `mofi data stats`: what a data set holds, in numbers and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mofi_lightning.data.scanning import Block, scan
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.data.distribution import Distribution
    from mofi_lightning.data.long_tail import LongTail
    from mofi_lightning.data.shards import DatasetInfo, ShardReader

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_MEASURES = ("image width", "image height", "image bytes", "text characters", "entities a row")
_PICTURED = {"image width": "pixels", "image height": "pixels", "image bytes": "bytes", "text characters": ""}
_BINS = 32
_NAMED, _PICTURED_NAMES = 5, 20


def stats(path: str, picture: Path | None = None, num_workers: int | None = None) -> None:
    """Print what a data set holds: rows, entities, sizes and lengths, and the long tail of the entities.

    Images are not decoded: their sizes are read from their headers.

    Args:
        path: folder or URI of the data set.
        picture: HTML file to write with histograms and the curve of the long tail; without it, all is
            printed only.
        num_workers: processes that read; by default one for each core.

    Raises:
        InputError: there is no such data set, or none of its rows can be read.
    """
    from mofi_lightning.data.shards import open_dataset
    from mofi_lightning.pages import require_html

    if picture is not None:
        require_html(picture)
    info = open_dataset(path)
    contents = _measure(info, num_workers)
    lines = _summary(info, contents)
    print("\n".join(lines))
    _print_quantiles(contents.measures)
    if contents.long_tail is not None:
        print("\n" + "\n".join(contents.long_tail.bars()))
    if picture is not None:
        _write_picture(picture, info, contents, lines)
        print(f"\npicture -> {picture}")


class _Counts(NamedTuple):
    """What the rows of one block hold."""

    measures: dict[str, Counter[int]]
    faults: Counter[str]
    entities: Counter[int]


class _Contents(NamedTuple):
    """What a data set holds."""

    measures: dict[str, Distribution]
    faults: Counter[str]
    long_tail: LongTail | None


def _count(reader: ShardReader, block: Block) -> _Counts:
    from mofi_lightning.data.headers import image_size
    from mofi_lightning.data.shards import CorruptRow

    measures: dict[str, Counter[int]] = {name: Counter() for name in _MEASURES}
    faults: Counter[str] = Counter()
    entities: Counter[int] = Counter()
    for index in range(block.first, block.stop):
        try:
            row = reader[index]
        except CorruptRow:
            faults["damaged row"] += 1
            continue
        size = image_size(row.image)
        if size is None:
            faults["no image"] += 1
        else:
            measures["image height"][size[0]] += 1
            measures["image width"][size[1]] += 1
        measures["image bytes"][len(row.image)] += 1
        measures["text characters"][len(row.text)] += 1
        measures["entities a row"][len(row.entities)] += 1
        entities.update(row.entities)
    return _Counts(measures, faults, entities)


def _measure(info: DatasetInfo, num_workers: int | None) -> _Contents:
    import numpy as np

    from mofi_lightning.data.distribution import Distribution
    from mofi_lightning.data.long_tail import LongTail
    from mofi_lightning.data.shards import ShardReader
    from mofi_lightning.data.storage import is_remote

    # an info of its own, because the processes need not be handed the vocabulary
    reader = ShardReader(replace(info), check=False)
    broken = {} if is_remote(info.location) else reader.chunk_faults()
    measures = {name: Distribution() for name in _MEASURES}
    faults: Counter[str] = Counter()
    if broken:
        faults["missing or truncated chunk"] = sum(int(reader.chunk_sizes[chunk]) for chunk in broken)
    images = np.zeros(len(info.vocabulary) if info.vocabulary is not None else 0, dtype=np.int64)
    for block in scan(reader, _count, broken, num_workers, "reading rows"):
        for name, counts in block.measures.items():
            measures[name].add(counts)
        faults.update(block.faults)
        for entity, count in block.entities.items():
            if 0 <= entity < len(images):
                images[entity] += count
            else:
                faults["class id beyond the vocabulary"] += count
    if not len(measures["image bytes"]):
        raise InputError(f"none of the {info.rows:,} rows of {info.location} can be read; build it again")
    return _Contents(measures, faults, LongTail(images) if info.vocabulary is not None else None)


def _summary(info: DatasetInfo, contents: _Contents) -> list[str]:
    from mofi_lightning.data.long_tail import described

    rows = len(contents.measures["image bytes"])
    size = contents.measures["image bytes"].total
    lines = [
        f"{info.location}: {info.rows:,} rows with {', '.join(sorted(info.fields))}, {size / 1e9:,.3g} GB"
    ]
    tail, vocabulary = contents.long_tail, info.vocabulary
    if tail is not None and vocabulary is not None:
        labelled = 1 - contents.measures["entities a row"].share(0)
        without = f", {tail.without_images:,} of them without image" if tail.without_images else ""
        lines += [
            f"{len(vocabulary):,} entities{without}; {labelled:.1%} of the rows have one or more",
            f"of the entities with images, the most frequent 1% have {tail.head_share(0.01):.1%} of all "
            f"labels, 10% have {tail.head_share(0.1):.1%}",
            f"most frequent: {described(tail.most(_NAMED), vocabulary.names)}",
            f"least frequent: {described(tail.least(_NAMED), vocabulary.names)}",
        ]
    if contents.faults:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in contents.faults.items())
        lines.append(
            f"{rows:,} rows can be read; something is wrong ({kinds}): `mofi data verify` names the rows"
        )
    return lines


def _print_quantiles(measures: Mapping[str, Distribution]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(f"{quantile:.0%}" for quantile in _QUANTILES), box=None)
    for name, *cells in _quantiles(measures):
        table.add_row(name, *cells)
    for column in table.columns[1:]:
        column.justify = "right"
    print()
    Console().print(table)


def _quantiles(measures: Mapping[str, Distribution]) -> list[list[str]]:
    return [
        [name, *(f"{value:,.0f}" for value in values.quantiles(_QUANTILES))]
        for name, values in measures.items()
        if len(values)
    ]


def _write_picture(file: Path, info: DatasetInfo, contents: _Contents, lines: list[str]) -> None:
    from html import escape

    from mofi_lightning import pages
    from mofi_lightning.charts import histogram, log_log_line

    charts = [
        histogram(name, unit or "characters", *contents.measures[name].bins(_BINS))
        for name, unit in _PICTURED.items()
        if len(contents.measures[name])
    ]
    sections = [
        f'<section><h2>Sizes and lengths</h2><div class="charts">{"".join(charts)}</div>'
        + pages.table(["", *(f"{q:.0%}" for q in _QUANTILES)], _quantiles(contents.measures))
        + "</section>"
    ]
    tail, vocabulary = contents.long_tail, info.vocabulary
    if tail is not None and vocabulary is not None and (curve := tail.curve()):
        tables = [
            pages.table(
                [title, "images"], [[pages.exposed(vocabulary.names[e], 80), f"{n:,}"] for e, n in entities]
            )
            for title, entities in (
                ("most frequent", tail.most(_PICTURED_NAMES)),
                ("least frequent", tail.least(_PICTURED_NAMES)),
            )
        ]
        chart = log_log_line("Images of an entity", "entities, most images first", curve)
        sections.insert(
            0,
            f'<section><h2>The long tail</h2><div class="charts">{chart}{"".join(tables)}</div></section>',
        )
    intro = "".join(f"<p>{escape(line)}</p>" for line in lines)
    pages.write_page(file, f"What {info.location} holds", intro + "".join(sections))
