"""Results as tables: for a terminal, as Markdown, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mofi_lightning.evaluation.suite.results import Result, read_results


@dataclass(frozen=True)
class ResultTable:
    """One row a model and data set, one column a measure.

    Attributes:
        columns: measures.
        rows: (data set, model, values by measure).
    """

    columns: list[str]
    rows: list[tuple[str, str, dict[str, float | None]]]

    @classmethod
    def of(cls, results: Sequence[Result]) -> ResultTable:
        """Rows in the order in which data sets and models first occur."""
        columns = list(dict.fromkeys(name for result in results for name in result.measures))
        values: dict[tuple[str, str], dict[str, float | None]] = {}
        for result in results:
            row = values.setdefault((result.dataset, result.model), {})
            row |= {name: result.metrics.get(name) for name in result.measures}
        return cls(columns, [(dataset, model, row) for (dataset, model), row in values.items()])

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [["data set", "model", *self.columns], ["---", "---", *["---:"] * len(self.columns)]]
        for dataset, model, row in self.rows:
            lines.append([dataset, model, *(self._cell(row.get(name)) for name in self.columns)])
        return (
            "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
            + "\n"
        )

    def csv(self) -> str:
        """As CSV, numbers in full, an empty cell where there is none."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dataset", "model", *self.columns])
        for dataset, model, row in self.rows:
            writer.writerow([dataset, model, *("" if row.get(c) is None else row[c] for c in self.columns)])
        return file.getvalue()

    @staticmethod
    def _cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"


def table(output: Path) -> None:
    """Show the results of an evaluation as a table, and write table.md and table.csv beside them.

    Args:
        output: folder of the results, as given to `mofi evaluate --output`.
    """
    rows = ResultTable.of(read_results(output))
    write_tables(output, rows)
    print(rows.markdown(), end="")


def write_tables(output: Path, rows: ResultTable) -> None:
    """Write table.md and table.csv."""
    for name, text in (("table.md", rows.markdown()), ("table.csv", rows.csv())):
        partial = output / f".{name}.partial"
        partial.write_text(text)
        partial.replace(output / name)
