"""`report.html`: one file without external resources that compares models in numbers, curves and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from mofi_lightning.evaluation.report import tables
from mofi_lightning.evaluation.report.comparisons import comparison_tables, with_best_only
from mofi_lightning.evaluation.report.contents import CURVES, ModelReport
from mofi_lightning.evaluation.report.curves import line_chart
from mofi_lightning.evaluation.report.maps import maps
from mofi_lightning.evaluation.report.pictures import neighbour_grids, worst_queries
from mofi_lightning.evaluation.report.tables import LONGEST_NAME, table, text
from mofi_lightning.evaluation.report.thumbnails import Thumbnails
from mofi_lightning.evaluation.suite.comparison import compare
from mofi_lightning.pages import exposed, write_page
from mofi_lightning.types import InputError

_RESULTS = (
    "mAP leaves each query out of what it searches; &ldquo;with self&rdquo; is the protocol of GPR1200, "
    "which counts it. kNN is the best of its sweep over k and T. &plusmn; is one standard error, whiskers "
    "are 95 % intervals; both are over entities, because images of one entity are not independent. The best "
    "is bold."
)
_PAIRS = (
    "The same queries under two models: the better one minus the other. The interval is a bootstrap over "
    "entities, p of a sign-flip permutation test over entities, corrected by Holm for the pairs of a "
    "measure: of many tests of models that do not differ, some would be below 0.05 by chance. A difference "
    "is bold where p is below 0.05."
)
_BEST_ONLY = " Of so many models only the pairs with the best one by the measure are tested."
_NEIGHBOURS = (
    "The ten images nearest to each query, nearest first. &#10003; shows the same entity, &#10007; another "
    "one; below a model's name, how many of those there are to find it found."
)
_WORST = (
    "The queries of each model with the lowest average precision (AP): what stands nearest, and the nearest "
    "of the images that should."
)


def write_report(file: Path, reports: Sequence[ModelReport], curation: Mapping[str, Any]) -> None:
    """Write the report, whole or not at all; equal contents give equal bytes.

    All names and images may come from anywhere: texts are escaped, cut, and show what would be hidden; images
    are decoded and encoded anew.

    Args:
        file: of the report.
        reports: a model on a data set each.
        curation: contents of `curation.json` files by name.
    """
    names = list(dict.fromkeys(report.dataset for report in reports))
    # the number of a model is its colour, the same in every chart
    numbers = {name: n for n, name in enumerate(dict.fromkeys(report.name for report in reports))}
    sets = ", ".join(exposed(name, LONGEST_NAME) for name in names)
    title = f"{len(numbers)} model{'s' if len(numbers) != 1 else ''} on {sets}"
    parts: list[str] = []
    if len(names) > 1:
        parts += [_index(names), _overview(reports, numbers)]
    for number, name in enumerate(names):
        parts.append(_data_set(number, name, [r for r in reports if r.dataset == name], numbers))
    first = {report.name: report for report in reversed(reports)}
    parts.append(_curves([first[name] for name in numbers], numbers))
    parts += [_funnel(name, content) for name, content in curation.items()]
    style = files("mofi_lightning.evaluation.report").joinpath("report.css").read_text()
    write_page(file, title, "".join(parts), style)


def _index(names: Sequence[str]) -> str:
    links = "".join(f'<li><a href="#set{n}">{text(name)}</a></li>' for n, name in enumerate(names))
    return f'<nav aria-label="data sets"><ul>{links}</ul></nav>'


def _overview(reports: Sequence[ModelReport], numbers: Mapping[str, int]) -> str:
    shared, charts = tables.overview(reports, numbers)
    about = (
        "Measures that several data sets share. The mean counts every set alike; only models that were "
        "measured on all of them have one."
    )
    folded = f"<details><summary>As tables</summary>{shared}</details>" if shared else ""
    return _section("All data sets", about, f"{charts}{folded}")


def _data_set(number: int, name: str, models: Sequence[ModelReport], numbers: Mapping[str, int]) -> str:
    data = models[0].data
    columns = list(dict.fromkeys(measure for model in models for measure in model.measures))
    thumbnails = Thumbnails(data, f"t{number}-")
    size = f"{len(data.keys):,} images of {len(data.classes):,} entities"
    if data.domains is not None:
        size += f" in {len(set(data.domains)):,} domains"
    numbers_of_models = (
        tables.bars(models, columns, numbers) + tables.measures(models, columns) + tables.notes(models)
    )
    pairs = compare([result for model in models for result in model.results.values()])
    about_pairs = _PAIRS + (_BEST_ONLY if with_best_only(pairs) else "")
    sections = [
        _section("Results", _RESULTS, numbers_of_models),
        _section("Differences between models", about_pairs, comparison_tables(pairs)),
        _section("Domains", "mAP of the queries of each domain.", tables.domains(models)),
        _section("Nearest neighbours", _NEIGHBOURS, neighbour_grids(models, thumbnails)),
        _section("Worst queries", _WORST, worst_queries(models, thumbnails)),
        _section("Maps", "", maps(models, thumbnails, f"map{number}-")),
    ]
    head = f'<h2 class="set">{text(name)}</h2><p>{size}.</p>'
    return f'<div id="set{number}">{head}{"".join(sections)}{thumbnails.sheet()}</div>'


def _curves(models: Sequence[ModelReport], numbers: Mapping[str, int]) -> str:
    charts = [
        line_chart(title, {m.name: m.curves[column] for m in models if column in m.curves}, numbers)
        for column, title in CURVES.items()
    ]
    about = "Losses of different objectives cannot be compared; each shows only how its own run went."
    shown = "".join(charts)
    return _section("Learning curves", about, f'<div class="charts">{shown}</div>' if shown else "")


def _funnel(name: str, content: Any) -> str:
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"{name} has no list 'steps'; give the curation.json that `mofi curate` writes")
    columns = list(dict.fromkeys(column for step in steps for column in step))
    rows = [[_cell(step.get(column)) for column in columns] for step in steps]
    broken = content.get("undecodable_images") or {}
    skipped = "".join(f"<p>{n:,} images left out: {text(str(kind))}.</p>" for kind, n in broken.items())
    return _section("Curation", text(name), table(columns, rows) + skipped)


def _section(title: str, about: str, content: str) -> str:
    above = f"<p>{about}</p>" if about else ""
    return f"<section><h3>{escape(title)}</h3>{above}{content}</section>" if content else ""


def _cell(value: Any) -> str:
    if value is None:
        return "<td>-</td>"
    if isinstance(value, float):
        return f"<td>{value:.3f}</td>"
    return f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{text(str(value))}</td>"
