"""The report of a curation as one page: numbers, charts and pictures, whatever texts and images hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from mofi_lightning.charts import compared_histograms, log_log_line, share_bars
from mofi_lightning.curation.report.counts import Step
from mofi_lightning.curation.report.data import (
    CandidateExample,
    EntityExample,
    NameExample,
    PairExample,
    ReportData,
    ScoreBins,
)
from mofi_lightning.pages import exposed, table, write_page

_THUMBNAIL = 96
# at most 132 pictures, 2 MB even of noise
_ENTITIES, _PICTURES, _PAIRS, _NAMES, _CANDIDATES = 12, 4, 12, 12, 8
_MOST_OF_A_TEXT, _MOST_OF_A_NAME, _MOST_OF_A_STEP, _MOST_KINDS = 200, 60, 48, 20


def write_report(file: Path, data: ReportData) -> None:
    """Write the page, whole or not at all; an older one is replaced.

    All texts and images may come from anywhere: texts are escaped, cut, and show what would be hidden;
    images are decoded and encoded anew, and those that cannot be are replaced by the reason.

    Args:
        file: of the page.
        data: what it shows.
    """
    body = [
        _funnel(data.steps),
        _left_out(data.removed, data.faults),
        _scores(data.histogram) if data.histogram else "",
        _long_tail(data.images_per_entity),
        _entities("Most frequent entities", data.frequent),
        _entities("Random entities", data.random),
        _pairs(data.kept, data.rejected),
        _names(data.ambiguous),
    ]
    style = files("mofi_lightning.curation.report").joinpath("report.css").read_text()
    write_page(file, exposed(data.title, _MOST_OF_A_TEXT), "".join(body), style)


def _funnel(steps: Sequence[Step]) -> str:
    head = ["after", "images", "labels", "entities", "coverage", "precision", "recall"]
    names = [exposed(step.step, _MOST_OF_A_STEP) for step in steps]
    rows = [
        [
            name,
            f"{s.rows:,}",
            f"{s.labels:,}",
            f"{s.entities:,}",
            *map(_share, (s.coverage, s.precision, s.recall)),
        ]
        for name, s in zip(names, steps, strict=True)
    ]
    about = (
        "Images are those that can be read. Coverage is the share of all pairs with a label, precision the "
        "share of the labels that are what the image shows, recall the correct labels over the pairs whose "
        "text names what the image shows. A dash: nobody knows what the images show."
    )
    bars = share_bars(
        "Pairs with a label", [(name, step.coverage) for name, step in zip(names, steps, strict=True)]
    )
    return _section("Steps", f'{table(head, rows)}<p>{about}</p><div class="charts">{bars}</div>')


def _left_out(removed: Mapping[str, int], faults: Mapping[str, int]) -> str:
    tables = [
        _counts("filter", "pairs removed", removed) or "<p>No filter removed a pair.</p>",
        _counts("fault", "images that cannot be decoded", faults) or "<p>All images can be decoded.</p>",
    ]
    return _section("Left out", "".join(tables))


def _counts(kind: str, what: str, counts: Mapping[str, int]) -> str:
    found = sorted(((n, name) for name, n in counts.items() if n), key=lambda item: (-item[0], item[1]))
    rows = [[exposed(name, _MOST_OF_A_NAME), f"{n:,}"] for n, name in found[:_MOST_KINDS]]
    if len(found) > _MOST_KINDS:
        rows.append([f"{len(found) - _MOST_KINDS:,} others", f"{sum(n for n, _ in found[_MOST_KINDS:]):,}"])
    return table([kind, what], rows) if rows else ""


def _scores(bins: ScoreBins) -> str:
    kept = "" if bins.threshold is None else f" Labels score {bins.threshold:z.3f} or more."
    if bins.estimated_precision is not None:
        kept += f" Their precision is estimated as {bins.estimated_precision:.3f}."
    decoys = (
        " The line shows the same entities against wrong images: what is right lies above it."
        if bins.decoys
        else ""
    )
    chart = compared_histograms(
        "Scores of the best candidates",
        "score",
        bins.edges,
        (f"labels ({sum(bins.labels):,})", bins.labels),
        (f"wrong images ({sum(bins.decoys):,})", bins.decoys) if bins.decoys else None,
        None if bins.threshold is None else (f"threshold {bins.threshold:z.3f}", bins.threshold),
    )
    return _section("Scores", f'<p>What ranks candidates.{decoys}{kept}</p><div class="charts">{chart}</div>')


def _long_tail(images_per_entity: Sequence[int]) -> str:
    from mofi_lightning.data.long_tail import LongTail

    images = np.asarray(images_per_entity, dtype=np.int64)
    shown = int((images > 0).sum())
    if not shown:
        return ""
    tail = LongTail(images)
    head = max(1, round(0.01 * shown))
    about = (
        f"{images.sum():,} labels of {shown:,} entities; the most frequent {head:,} "
        f"{'has' if head == 1 else 'have'} {tail.head_share(0.01):.1%} of them, half of the entities have "
        f"{int(np.median(images[images > 0])):,} images or fewer."
    )
    chart = log_log_line("Images of each entity", "entities, most frequent first", tail.curve())
    return _section("Long tail", f'<p>{about}</p><div class="charts">{chart}</div>')


def _entities(title: str, entities: Sequence[EntityExample]) -> str:
    items = []
    for entity in entities[:_ENTITIES]:
        name = exposed(entity.name, _MOST_OF_A_NAME)
        pictures = "".join(
            _picture(data, f"{name}, picture {number}")
            for number, data in enumerate(entity.pictures[:_PICTURES], start=1)
        )
        items.append(
            f'<li><div class="pictures">{pictures}</div><b>{_text(entity.name, _MOST_OF_A_NAME)}</b>'
            f"<small>{_text(entity.id, _MOST_OF_A_NAME)}, {entity.images:,} images</small>"
            f"{_text(entity.description, _MOST_OF_A_TEXT)}</li>"
        )
    return _section(title, f'<ul class="rows">{"".join(items)}</ul>') if items else ""


def _pairs(kept: Sequence[PairExample], rejected: Sequence[PairExample]) -> str:
    if not kept and not rejected:
        return ""
    sides = ""
    for title, pairs in (("Kept", kept), ("Rejected", rejected)):
        items = "".join(map(_pair, pairs[:_PAIRS])) or "<li>none</li>"
        sides += f'<div><h3>{title}</h3><ul class="rows">{items}</ul></div>'
    return _section("Kept and rejected", f'<div class="sides">{sides}</div>')


def _pair(pair: PairExample) -> str:
    verdict = {
        None: "",
        True: '<span class="good">&#10003; the image shows it</span>',
        False: '<span class="bad">&#10007; the image shows something else</span>',
    }
    reason = f"<small>{_text(pair.reason, _MOST_OF_A_TEXT)}</small>" if pair.reason else ""
    alt = f"image of the pair {exposed(pair.key, _MOST_OF_A_NAME)}"
    return (
        f"<li>{_picture(pair.image, alt)}<small>{_text(pair.key, _MOST_OF_A_NAME)}</small>"
        f'<q>{_text(pair.text, _MOST_OF_A_TEXT) or "no text"}</q><ul class="labels"><li>'
        f"{_text(pair.entity, _MOST_OF_A_NAME)} <b>{pair.score:z.3f}</b></li></ul>{reason}"
        f"{verdict[pair.correct]}</li>"
    )


def _names(names: Sequence[NameExample]) -> str:
    head = ["may mean", "by the text", "by the image", "label"]
    items = []
    for example in names[:_NAMES]:
        rows = [
            [
                _described(candidate),
                f"{candidate.link:.3f}",
                "-" if candidate.similarity is None else f"{candidate.similarity:z.3f}",
                "\u2713" if candidate.chosen else "-",
            ]
            for candidate in example.candidates[:_CANDIDATES]
        ]
        alt = f"image of a text with the name {exposed(example.name, _MOST_OF_A_NAME)}"
        items.append(
            f'<li class="name">{_picture(example.image, alt)}<div>'
            f"<h3>{_text(example.name, _MOST_OF_A_NAME)}</h3>"
            f"<q>{_text(example.text, _MOST_OF_A_TEXT)}</q>{table(head, rows)}</div></li>"
        )
    about = (
        "What a name may mean: the probability by the text, how well the image fits (standard deviations "
        "above images in general), and what became a label."
    )
    body = f'<p>{about}</p><ul class="rows one">{"".join(items)}</ul>'
    return _section("Ambiguous names", body) if items else ""


def _described(candidate: CandidateExample) -> str:
    about = f": {exposed(candidate.description, _MOST_OF_A_TEXT)}" if candidate.description else ""
    return f"{exposed(candidate.name, _MOST_OF_A_NAME)} ({exposed(candidate.id, _MOST_OF_A_NAME)}){about}"


def _picture(data: bytes, alt: str) -> str:
    from mofi_lightning.data.thumbnails import picture

    return picture(data, _THUMBNAIL, alt)[0]


def _text(text: str, limit: int) -> str:
    return f"<bdi>{escape(exposed(text, limit))}</bdi>" if text else ""


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"
