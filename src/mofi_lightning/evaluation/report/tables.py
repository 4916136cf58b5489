"""Numbers of the report: tables of measures, of domains and of data sets, and bars with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from mofi_lightning.evaluation.report.bars import Bar, grouped_bars, interval_bars
from mofi_lightning.evaluation.report.contents import ModelReport
from mofi_lightning.pages import exposed

TITLES = {
    "map": "mAP",
    "map_with_self": "mAP with self",
    "map@R": "mAP@R",
    "recall@1": "R@1",
    "knn_acc1": "kNN",
    "acc1": "zero-shot top-1",
    "acc5": "zero-shot top-5",
    "mean_per_class_recall": "zero-shot per class",
    "image_retrieval_recall@1": "text-to-image R@1",
    "text_retrieval_recall@1": "image-to-text R@1",
    "lp_acc1": "linear probe",
    "lp_acc5": "linear probe top-5",
    "lp_mean_per_class_recall": "linear probe per class",
    "ridge_acc1": "ridge probe",
    "ridge_acc5": "ridge probe top-5",
    "ridge_mean_per_class_recall": "ridge probe per class",
}
DOMAIN = "map/"
LONGEST_NAME = 60


def text(words: str, limit: int = LONGEST_NAME) -> str:
    """`words` as HTML: cut, escaped, nothing hidden in it."""
    return escape(exposed(words, limit))


def title_of(measure: str) -> str:
    """What a column and a chart are called."""
    return TITLES.get(measure, measure.replace("_", " "))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls within itself; `head` is plain text, the cells are HTML with their tags."""
    titles = "".join(f"<th scope=col>{text(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        '<div class="scroll" tabindex="0" role="group" aria-label="table"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def row_name(name: str) -> str:
    """The first cell of a row."""
    return f"<th scope=row>{text(name)}</th>"


def measures(models: Sequence[ModelReport], columns: Sequence[str]) -> str:
    """The table of measures, best in bold; below it, why something is missing in it.

    What the training took stands apart, at the end.
    A measure that no model has is no column; the list below the table says why.
    """
    shown = [column for column in columns if any(column in model.values for model in models)]
    reasons: dict[str, int] = {}
    timed = any(model.seconds is not None for model in models)
    rows = []
    for model in models:
        cells = [_value_or_reason(model, column, models, reasons) for column in shown]
        if timed and model.seconds is None:
            cells.append(_missing("no training time was recorded", reasons, "cost"))
        elif timed:
            cells.append(f'<td class="cost">{model.seconds:,.0f}</td>')
        rows.append([row_name(model.name), *cells])
    head = ["model", *map(title_of, shown), *(["training, s"] if timed else [])]
    return table(head, rows) + _numbered(reasons) + _nowhere(models, [c for c in columns if c not in shown])


def domains(models: Sequence[ModelReport]) -> str:
    """The table of mean average precision in each domain; empty without domains."""
    columns = list(dict.fromkeys(k for m in models for k in m.values if k.startswith(DOMAIN)))
    if not columns:
        return ""
    shown = [*(["map"] if any("map" in m.values for m in models) else []), *columns]
    reasons: dict[str, int] = {}
    rows = [
        [
            row_name(model.name),
            *(_value_or_reason(model, column, models, reasons, bar=True) for column in shown),
        ]
        for model in models
    ]
    head = ["model", *("all" if column == "map" else column.removeprefix(DOMAIN) for column in shown)]
    return table(head, rows) + _numbered(reasons)


def bars(models: Sequence[ModelReport], columns: Sequence[str], numbers: Mapping[str, int]) -> str:
    """One chart a measure with a bar a model; a measure that no model has is left out."""
    charts = [
        interval_bars(title_of(column), [bar_of(model, column, numbers) for model in models])
        for column in columns
        if any(column in model.values for model in models)
    ]
    return f'<div class="charts bars">{"".join(charts)}</div>' if charts else ""


def bar_of(model: ModelReport, measure: str, numbers: Mapping[str, int]) -> Bar:
    """The bar of a model's measure."""
    name = exposed(model.name, LONGEST_NAME)
    return Bar(name, numbers[model.name], model.values.get(measure), model.intervals.get(measure))


def overview(reports: Sequence[ModelReport], numbers: Mapping[str, int]) -> tuple[str, str]:
    """Measures that several data sets share: a table a measure with the mean over the sets, and grouped bars.

    The mean (unweighted, as VTAB's) is that of the models that have the measure on all of these sets.
    """
    by_model = {name: {r.dataset: r for r in reports if r.name == name} for name in numbers}
    sets = list(dict.fromkeys(report.dataset for report in reports))
    tables, charts = [], []
    for measure in dict.fromkeys(name for report in reports for name in report.measures):
        shared = [name for name in sets if any(r.dataset == name and measure in r.values for r in reports)]
        if len(shared) < 2:
            continue
        values = {
            model: [of_set[name].values.get(measure) if name in of_set else None for name in shared]
            for model, of_set in by_model.items()
        }
        means = {model: _mean(row) for model, row in values.items()}
        known = [
            max((v for row in values.values() if (v := row[place]) is not None), default=None)
            for place in range(len(shared))
        ]
        best = [*known, max((mean for mean in means.values() if mean is not None), default=None)]
        rows = [
            [
                row_name(model),
                *(_plain(v, b, len(values)) for v, b in zip([*row, means[model]], best, strict=True)),
            ]
            for model, row in values.items()
        ]
        tables.append(f"<h4>{text(title_of(measure))}</h4>{table(['model', *shared, 'mean'], rows)}")
        groups = [
            (
                exposed(name, LONGEST_NAME),
                [
                    bar_of(of_set[name], measure, numbers)
                    for of_set in by_model.values()
                    if name in of_set and measure in of_set[name].values
                ],
            )
            for name in shared
        ]
        mean_bars = [
            Bar(exposed(model, LONGEST_NAME), numbers[model], mean)
            for model, mean in means.items()
            if mean is not None
        ]
        charts.append(
            grouped_bars(title_of(measure), [*groups, *([("mean", mean_bars)] if mean_bars else [])])
        )
    return "".join(tables), f'<div class="charts bars">{"".join(charts)}</div>' if charts else ""


def notes(models: Sequence[ModelReport]) -> str:
    """What a reader of the numbers must know, each note once with the models it is about."""
    about: dict[str, list[str]] = {}
    for model in models:
        of_results = [note for result in model.results.values() for note in result.notes]
        for note in dict.fromkeys([*model.data.notes, *of_results]):
            about.setdefault(note, []).append(model.name)
    lines = []
    for note, names in about.items():
        of_some = "" if len(names) == len(models) else f" ({text(', '.join(names), 200)})"
        lines.append(f"<li>{text(note, 400)}{of_some}</li>")
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def _value_or_reason(
    model: ModelReport,
    column: str,
    models: Sequence[ModelReport],
    reasons: dict[str, int],
    bar: bool = False,
) -> str:
    value = model.values.get(column)
    if value is None:
        return _missing(model.why_missing(column), reasons)
    best = value == max(other.values[column] for other in models if column in other.values)
    marks = [*(["best"] if best and len(models) > 1 else []), *(["share"] if bar else [])]
    attributes = f' class="{" ".join(marks)}"' if marks else ""
    if column in model.intervals:
        low, high = model.intervals[column]
        attributes += f' title="95 % interval {low:.3f} to {high:.3f}"'
    if bar:
        attributes += f' style="--share:{min(max(value, 0.0), 1.0):.1%}"'
    error = model.errors.get(column)
    spread = "" if error is None else f"<small>&plusmn;&thinsp;{error:.3f}</small>"
    return f"<td{attributes}>{value:.3f}{spread}</td>"


def _missing(reason: str, reasons: dict[str, int], style: str = "") -> str:
    number = reasons.setdefault(reason, len(reasons) + 1)
    attributes = f' class="{style}"' if style else ""
    return f'<td{attributes} title="{text(reason, 300)}">-<sup>{number}</sup></td>'


def _numbered(reasons: Mapping[str, int]) -> str:
    lines = "".join(f"<li>{text(reason, 300)}</li>" for reason in reasons)
    return f'<ol class="reasons">{lines}</ol>' if lines else ""


def _nowhere(models: Sequence[ModelReport], columns: Sequence[str]) -> str:
    about: dict[str, list[str]] = {}
    for column in columns:
        why = "; ".join(dict.fromkeys(model.why_missing(column) for model in models))
        about.setdefault(why, []).append(title_of(column))
    lines = "".join(
        f"<li>{text(', '.join(names), 300)}: {text(why, 300)}</li>" for why, names in about.items()
    )
    return f'<ul class="notes">{lines}</ul>' if lines else ""


def _plain(value: float | None, best: float | None, models: int) -> str:
    if value is None:
        return '<td title="not measured on every set">-</td>'
    mark = ' class="best"' if value == best and models > 1 else ""
    return f"<td{mark}>{value:.3f}</td>"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
