"""`mofi evaluate`: several models on one labelled set, as JSON, as a table and as a report to look at."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from mofi_lightning.evaluation.base import Evaluator
from mofi_lightning.types import InputError


def evaluate(
    data: Path,
    output: Path,
    models: list[str] = ["pixels"],  # noqa: B006 (jsonargparse shows it; never changed)
    curation: list[Path] = [],  # noqa: B006
    evaluators: list[Evaluator] = [],  # noqa: B006
    workers: int = 2,
) -> None:
    """Measure and compare models on labelled images.

    Writes results.json (a row a model), details.json (every value with its standard error), curation.json
    (the counts of the data sets given, by name) and report.html.
    Embeddings are kept in OUTPUT/cache by content, so a second run embeds only what is new.

    Args:
        data: a split of a pairs folder (`pairs/test.parquet`), a GPR1200 folder, or a folder with one
            subfolder a class.
        output: folder for the results.
        models: `NAME=PATH` each, PATH a model folder, a checkpoint or a training run's folder; `pixels` is
            the raw image at 16 x 16.
        curation: data sets of `mofi curate` whose counts the report shows: folders, or their curation.json.
        evaluators: what to measure; retrieval, kNN, zero-shot and image-text retrieval if empty.
        workers: threads that decode images.
    """
    from mofi_lightning.evaluation.cache import Embedder
    from mofi_lightning.evaluation.datasets import open_evaluation_set
    from mofi_lightning.evaluation.evaluators import standard_evaluators
    from mofi_lightning.evaluation.models import parse_models
    from mofi_lightning.evaluation.report import ModelReport, choose_queries, write_report

    named = parse_models(models)
    counts = [path / "curation.json" if path.is_dir() else path for path in curation]
    funnels = {file.resolve().parent.name: _read_json(file) for file in counts}
    images = open_evaluation_set(data)
    measures = evaluators or standard_evaluators()
    queries = choose_queries(images, len(named))
    reports: list[ModelReport] = []
    for model in named:
        embedder = Embedder(
            model.load(),
            output / "cache",
            model.content_hash(),
            workers,
            description=f"embedding with {model.name}",
        )
        values: dict[str, float] = {}
        for evaluator in measures:
            values |= evaluator(embedder, images)
        embedded = embedder.images(images)
        reports.append(ModelReport.of(model, values, embedded, queries))
        if embedded.failed:
            kinds = ", ".join(f"{count} x {kind}" for kind, count in embedded.failures().items())
            print(f"{model.name}: {len(embedded.failed)} of {len(images.keys)} images left out ({kinds})")

    columns = list(dict.fromkeys(name for evaluator in measures for name in evaluator.measures))
    rows = [{"model": r.name, **{c: r.values.get(c) for c in columns}, "seconds": r.seconds} for r in reports]
    _write_json(output / "results.json", rows)
    _write_json(
        output / "details.json",
        {
            "data": {"path": str(data), "images": len(images.keys), "entities": len(images.classes)},
            "models": {r.name: r.values | {"undecodable": dict(r.failures)} for r in reports},
        },
    )
    if funnels:
        _write_json(output / "curation.json", funnels)
    write_report(output / "report.html", images, reports, columns, funnels)
    _print_table(rows, columns)
    print(f"{output / 'report.html'} compares them")


def _print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from mofi_lightning.evaluation.report import TITLES

    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    best = {c: max((row[c] for row in rows if row[c] is not None), default=None) for c in columns}
    for column in columns:
        table.add_column(TITLES.get(column, column.replace("_", " ")), justify="right")
    table.add_column("seconds", justify="right")
    for row in rows:
        cells = ["-" if row[c] is None else f"{row[c]:.3f}" for c in columns]
        cells = [
            f"[bold]{cell}[/]" if row[c] is not None and row[c] == best[c] else cell
            for cell, c in zip(cells, columns, strict=True)
        ]
        table.add_row(row["model"], *cells, "-" if row["seconds"] is None else f"{row['seconds']:.0f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"no curation report at {file}; `mofi curate` writes curation.json") from error
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}") from error


def _write_json(file: Path, content: Any) -> None:
    """Write whole or not at all; NaN, which JSON does not know, becomes null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")
    os.replace(partial, file)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
