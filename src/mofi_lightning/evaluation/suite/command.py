"""`mofi evaluate`: several models on several labelled sets, as JSON, as tables and as a report to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mofi_lightning.types import InputError


def evaluate(
    model: list[str] = ["pixels"],  # noqa: B006 (jsonargparse shows it; never changed)
    suite: list[Path] = [],  # noqa: B006
    data: list[str] = [],  # noqa: B006
    output: Path = Path("evaluation"),
    curation: list[Path] = [],  # noqa: B006
    skip_missing: bool = False,
    workers: int = 2,
) -> None:
    """Measure and compare models on labelled images.

    Writes OUTPUT/results (one JSON a model, data set and task), table.md, table.csv and report.html.
    Embeddings are kept in OUTPUT/cache by content: the same command goes on where it was interrupted and
    repeats only what is new.

    Args:
        model: `NAME=WHAT` or WHAT each, WHAT a model folder, a checkpoint, the folder of a training run, a
            Hugging Face folder or hub id OWNER/NAME (CLIP, SigLIP), `hf_mofi:FOLDER` (weights of MOFI's
            authors), `open_clip:ARCHITECTURE=PATH`, a backbone with its weights (`timm/ARCHITECTURE.TAG`,
            `timm/ARCHITECTURE=WEIGHTS`, `efficientnet_lite/lite0`), or `pixels`, the raw image at 16 x 16.
        suite: YAML files with data sets and what to measure on them; configs/evaluation holds some.
        data: data sets to measure in the standard way: a split of a pairs folder (`pairs/test.parquet`), a
            data set of `mofi curate`, GPR1200, ImageNet, a folder with one subfolder a class, tars in
            CLIP_benchmark's layout, captions in Karpathy's JSON.
        output: folder for the results.
        curation: data sets of `mofi curate` whose counts the report shows: folders, or their curation.json.
        skip_missing: leave out data sets of a suite that cannot be opened, with a warning that says why.
        workers: threads that decode images.
    """
    from mofi_lightning.evaluation.models.words import parse_models
    from mofi_lightning.evaluation.report.contents import ModelReport
    from mofi_lightning.evaluation.report.page import write_report
    from mofi_lightning.evaluation.suite.results import read_results
    from mofi_lightning.evaluation.suite.running import SuiteRun
    from mofi_lightning.evaluation.suite.suite import load_suites
    from mofi_lightning.evaluation.suite.table import write_tables

    named = parse_models(model)
    funnels = _read_counts(curation)
    run = SuiteRun(named, load_suites(suite, data), output, workers, skip_missing)
    reports = [ModelReport.of(evaluated) for evaluated in run]
    if not reports:
        raise InputError("nothing could be measured; the lines above say why")
    shown = write_tables(output, [result for report in reports for result in report.results.values()])
    write_report(output / "report.html", reports, funnels)
    print(f"{shown}\n{output / 'report.html'} compares them")
    others = sorted({result.model for result in read_results(output)} - {m.name for m in named})
    if others:
        print(f"{output} also holds results of {', '.join(others)}; `mofi evaluate table {output}` shows all")
    if run.failures:
        raise InputError(f"{len(run.failures)} of the evaluations failed; the lines above say why")


def table(output: Path) -> None:
    """Show the results of an evaluation as tables, and write table.md and table.csv beside them.

    Args:
        output: folder of the results, as given to `mofi evaluate --output`.
    """
    from mofi_lightning.evaluation.suite.results import read_results
    from mofi_lightning.evaluation.suite.table import write_tables

    print(write_tables(output, read_results(output)), end="")


def _read_counts(curation: Sequence[Path]) -> dict[str, Any]:
    """The counts of data sets by the name of their folder, or all of its path where two are called alike."""
    files = [(path / "curation.json" if path.is_dir() else path).resolve() for path in curation]
    names = [file.parent.name for file in files]
    return {
        name if names.count(name) == 1 else str(file.parent): _read_json(file)
        for name, file in zip(names, files, strict=True)
    }


def _read_json(file: Path) -> Any:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"no curation report at {file}; `mofi curate` writes curation.json") from error
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}") from error
    steps = content.get("steps") if isinstance(content, dict) else None
    left_out = content.get("undecodable_images") or {} if isinstance(content, dict) else None
    if not (
        isinstance(steps, list) and all(isinstance(s, dict) for s in steps) and isinstance(left_out, dict)
    ):
        raise InputError(f"{file} is no report of `mofi curate`: it has no list 'steps' of counts")
    return content
