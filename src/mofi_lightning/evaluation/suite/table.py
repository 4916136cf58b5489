"""Results as tables: as Markdown, which also reads well in a terminal, and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mofi_lightning.evaluation.suite.comparison import compare, comparison_markdown, uncomparable
from mofi_lightning.evaluation.suite.results import Result

# data set of the rows of means; no data set can be called so: it would end up in a file of another name
MEAN = "mean of the data sets"

_Row = dict[str, float | None]


@dataclass(frozen=True)
class ResultTable:
    """One row a model and data set, one column a measure.

    Attributes:
        columns: measures.
        rows: (data set, model, values by measure).
    """

    columns: list[str]
    rows: list[tuple[str, str, _Row]]

    @classmethod
    def of(cls, results: Sequence[Result]) -> ResultTable:
        """Rows in the order in which data sets and models first occur, then the means over the data sets.

        The mean of a measure is over the data sets for which any model has it; a model that lacks one of them
        has no mean. A measure that no model has on any of them has no column.
        """
        columns = [
            name
            for name in dict.fromkeys(name for result in results for name in result.measures)
            if any(result.metrics.get(name) is not None for result in results)
        ]
        cells: dict[tuple[str, str], _Row] = {}
        for result in results:
            row = cells.setdefault((result.dataset, result.model), {})
            row |= {name: result.metrics.get(name) for name in result.measures}
        datasets = list(dict.fromkeys(dataset for dataset, _ in cells))
        models = list(dict.fromkeys(model for _, model in cells))
        rows = [(d, m, cells[d, m]) for d in datasets for m in models if (d, m) in cells]
        if len(datasets) > 1:
            rows += [(MEAN, model, _means(cells, columns, datasets, model)) for model in models]
        return cls(columns, rows)

    def markdown(self) -> str:
        """As an aligned Markdown table."""
        lines = [["data set", "model", *self.columns]]
        for dataset, model, row in self.rows:
            lines.append([_plain(dataset), _plain(model), *(_cell(row.get(name)) for name in self.columns)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * width if number < 2 else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
        lines.insert(1, rule)
        return "".join(
            "| "
            + " | ".join(
                cell.ljust(width) if number < 2 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            + " |\n"
            for line in lines
        )

    def csv(self) -> str:
        """As CSV, numbers in full, an empty cell where there is none."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dataset", "model", *self.columns])
        for dataset, model, row in self.rows:
            writer.writerow([dataset, model, *("" if row.get(c) is None else row[c] for c in self.columns)])
        return file.getvalue()


def write_tables(output: Path, results: Sequence[Result]) -> str:
    """Write table.csv, and table.md with the differences between models and the notes of the results.

    Returns:
        What a terminal shows: the table and the notes. With many models the differences fill pages.
    """
    rows = ResultTable.of(results)
    notes = _notes(results) + "".join(f"- {line}\n" for line in uncomparable(results))
    parts = [rows.markdown(), comparison_markdown(compare(results)), notes]
    for name, text in (("table.md", "\n".join(filter(None, parts))), ("table.csv", rows.csv())):
        partial = output / f".{name}.{os.getpid()}.partial"
        partial.write_text(text)
        partial.replace(output / name)
    return "\n".join(filter(None, [rows.markdown(), notes]))


def _notes(results: Sequence[Result]) -> str:
    """What a reader of the numbers must know, each note once a data set with the models it is about."""
    models: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for note in result.notes:
            of = models.setdefault((result.dataset, note), [])
            of += [result.model] * (result.model not in of)
    several = len({result.model for result in results}) > 1
    lines = []
    for (dataset, note), of in models.items():
        about = f" ({', '.join(of)})" if several else ""
        lines.append(f"- {_plain(dataset + about)}: {note}\n")
    return "".join(lines)


def _means(
    cells: dict[tuple[str, str], _Row], columns: Sequence[str], datasets: Sequence[str], model: str
) -> _Row:
    means: _Row = {}
    for column in columns:
        measured = [
            d
            for d in datasets
            if any(row.get(column) is not None for (of, _), row in cells.items() if of == d)
        ]
        own = [cells.get((dataset, model), {}).get(column) for dataset in measured]
        known = [value for value in own if value is not None]
        means[column] = sum(known) / len(known) if known and len(known) == len(own) else None
    return means


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(name: str) -> str:
    return name.replace("|", "\\|").replace("\n", " ")
