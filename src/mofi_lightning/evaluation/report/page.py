"""`report.html`: one file without external resources that compares models in numbers, curves and pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from torchvision.io import encode_jpeg

from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.report.contents import CURVES, NEIGHBOURS, ModelReport
from mofi_lightning.evaluation.report.curves import line_chart
from mofi_lightning.pages import write_page
from mofi_lightning.types import InputError

TITLES = {
    "map": "mAP",
    "map_with_self": "mAP with self",
    "knn_acc1": "kNN",
    "acc1": "zero-shot top-1",
    "acc5": "zero-shot top-5",
    "image_retrieval_recall@1": "text-to-image R@1",
    "text_retrieval_recall@1": "image-to-text R@1",
}
_THUMBNAIL = Preprocess(size=64, resize="shortest")


def write_report(file: Path, reports: Sequence[ModelReport], curation: Mapping[str, Any]) -> None:
    """Write the report, whole or not at all.

    Args:
        file: of the report.
        reports: a model on a data set each.
        curation: contents of `curation.json` files by name.
    """
    names = list(dict.fromkeys(report.dataset for report in reports))
    models = list(dict.fromkeys(report.name for report in reports))
    title = f"{len(models)} model{'s' if len(models) != 1 else ''} on {', '.join(names)}"
    sections: list[str] = []
    for name in names:
        of_data = [report for report in reports if report.dataset == name]
        data = of_data[0].data
        columns = list(
            dict.fromkeys(m for r in of_data for result in r.results.values() for m in result.measures)
        )
        sections.append(
            f"<p>{escape(name)}: {len(data.keys):,} images of {len(data.classes):,} entities.</p>"
        )
        sections.append(_results(of_data, columns))
        sections.append(_pictures(data, of_data))
    first = [report for report in reports if report.dataset == names[0]]
    sections += [_curves(first), *(_funnel(name, content) for name, content in curation.items())]
    style = files("mofi_lightning.evaluation.report").joinpath("report.css").read_text()
    write_page(file, title, "".join(sections), style)


def _results(models: Sequence[ModelReport], columns: Sequence[str]) -> str:
    best = {
        c: max((m.values[c] for m in models if _known(m.values.get(c))), default=math.nan) for c in columns
    }

    def cell(model: ModelReport, column: str) -> str:
        value = model.values.get(column)
        if value is None or not math.isfinite(value):
            return "<td>-</td>"
        error = model.errors.get(column)
        spread = f"<small>&plusmn;&thinsp;{error:.3f}</small>" if _known(error) else ""
        mark = ' class="best"' if value == best[column] and len(models) > 1 else ""
        return f"<td{mark}>{value:.3f}{spread}</td>"

    rows = [
        [f"<th scope=row>{escape(m.name)}</th>", *(cell(m, c) for c in columns), _cell(m.seconds, ".0f")]
        for m in models
    ]
    head = ["model", *(TITLES.get(c, c.replace("_", " ")) for c in columns), "training, s"]
    skipped = [
        f"<p>{escape(m.name)} left out {n:,} images: {escape(kind)}.</p>"
        for m in models
        for kind, n in m.failures.items()
    ]
    return (
        f"<section><h2>Results</h2>{_table(head, rows)}<p>mAP leaves each query out of what it searches; "
        "&ldquo;with self&rdquo; is the protocol of GPR1200, which counts it. kNN is the best of its sweep "
        "over k and T. &plusmn; is one standard error over entities, because images of one entity are not "
        "independent. A dash: the model has no text tower, or nothing was recorded. The best is bold.</p>"
        f"{''.join(skipped)}</section>"
    )


def _curves(models: Sequence[ModelReport]) -> str:
    numbers = {model.name: number for number, model in enumerate(models)}
    charts = [
        line_chart(title, {m.name: m.curves[column] for m in models if column in m.curves}, numbers)
        for column, title in CURVES.items()
    ]
    if not any(charts):
        return ""
    return (
        "<section><h2>Learning curves</h2><p>Losses of different objectives cannot be compared; each "
        f'shows only how its own run went.</p><div class="charts">{"".join(charts)}</div></section>'
    )


def _funnel(name: str, content: Any) -> str:
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{name} has no list 'steps'; give the curation.json that `mofi curate` writes")
    columns = list(dict.fromkeys(column for step in steps for column in step))
    rows = [[_cell(step.get(column)) for column in columns] for step in steps]
    broken = content.get("undecodable_images") or {}
    skipped = "".join(f"<p>{n:,} images left out: {escape(str(kind))}.</p>" for kind, n in broken.items())
    return f"<section><h2>Curation</h2><p>{escape(name)}</p>{_table(columns, rows)}{skipped}</section>"


def _pictures(data: EvaluationSet, models: Sequence[ModelReport]) -> str:
    @cache
    def thumbnail(row: int) -> str:
        jpeg = encode_jpeg(_THUMBNAIL(decode(data.images[row])), quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg.numpy().tobytes()).decode()

    queries = list(dict.fromkeys(row for model in models for row in model.neighbours))
    blocks = [_query(data, models, row, thumbnail) for row in queries]
    if not blocks:
        return ""
    return (
        "<section><h2>Nearest neighbours</h2><p>The ten images nearest to each query, nearest first. "
        "&#10003; shows the same entity, &#10007; another one; below a model's name, how many of those "
        f"there are to find it found.</p>{''.join(blocks)}</section>"
    )


def _query(
    data: EvaluationSet, models: Sequence[ModelReport], query: int, thumbnail: Callable[[int], str]
) -> str:
    def name(row: int) -> str:
        return escape(data.names.get(data.entities[row], data.entities[row]))

    findable = min(NEIGHBOURS, data.entities.count(data.entities[query]) - 1)
    rows = []
    for model in models:
        found = model.neighbours.get(query, [])
        right = [data.entities[row] == data.entities[query] for row in found]
        hits = "".join(
            f'<li{" class=right" if good else ""} title="{name(row)}">'
            f'<img src="{thumbnail(row)}" alt="{name(row)}">'
            f"<b>{'&#10003;' if good else '&#10007;'}</b></li>"
            for row, good in zip(found, right, strict=True)
        )
        rows.append(
            f'<div class="row"><span>{escape(model.name)}<small>{sum(right)} of {findable}</small></span>'
            f'<ol class="hits">{hits}</ol></div>'
        )
    return (
        f'<div class="query"><figure><img src="{thumbnail(query)}" alt="">'
        f"<figcaption>{name(query)}</figcaption></figure>"
        f"<div>{''.join(rows)}</div></div>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th scope=col>{escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any, form: str = ".3f") -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, float):
        return f"<td>{value:{form}}</td>"
    return f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{escape(str(value))}</td>"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
