"""What a curation would cost: all stages on a sample of the corpus, timed."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

from mofi_lightning.curation.inputs import Inputs
from mofi_lightning.curation.labels.selection import Criteria
from mofi_lightning.curation.run import Run
from mofi_lightning.curation.stages.engines import Map
from mofi_lightning.types import InputError

_TITLES = {
    "CountWords": "counting words",
    "LinkTexts": "linking texts",
    "EmbedEntities": "embedding entities",
    "ScoreImages": "checking images",
    "Agreement": "comparing images",
    "RankCandidates": "ranking candidates",
}


class _Work(NamedTuple):
    """One task: rows, seconds, and the process that did it."""

    rows: int
    seconds: float
    process: int


@dataclass(frozen=True)
class _Timed:
    """A stage whose tasks say how long they took."""

    job: Callable[[Any], int]

    @property
    def uses_gpu(self) -> bool:
        """Whether the job would."""
        return getattr(self.job, "uses_gpu", False)

    def __call__(self, task: Any) -> _Work:
        start = time.perf_counter()
        rows = self.job(task)
        return _Work(rows, time.perf_counter() - start, os.getpid())


def estimate(inputs: Inputs, criteria: Criteria, map_parts: Map, rows: int, output: Path) -> None:
    """Go through the stages with about `rows` rows, spread over the corpus, and print what the whole costs.

    Work grows with the number of rows, but that of embedding entities with their number, of which all that
    the knowledge base has are counted. What a process does first takes longer, so it counts only where it
    is all there is.

    Raises:
        InputError: `rows` is out of range, or what `curate` raises.
    """
    from rich.console import Console
    from rich.table import Table

    if rows < 1:
        raise InputError(f"dry_run {rows} is out of range; give a number of rows, such as 10000")
    work: dict[str, list[_Work]] = defaultdict(list)

    def timed(job: Callable[[Any], int], tasks: Iterable[Any]) -> Iterator[int]:
        for done in map_parts(_Timed(job), tasks):
            work[type(job).__name__].append(done)
            yield done.rows

    parts = inputs.parts()
    total = sum(part.rows for part in parts)
    step = max(1, total // rows)
    sampled = [part._replace(number=number) for number, part in enumerate(parts[::step])]
    # beside the output, which all workers can reach
    above = next(folder for folder in output.parents if folder.exists())
    with TemporaryDirectory(prefix=".dry-run-", dir=above) as folder:
        run = Run(inputs, Path(folder), cast("Map", timed), sampled)
        ranked = run.ranked(criteria.top_k)
        stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        entities = len(run.knowledge_base)
        # of an entity's images the sample has few
        anything = replace(criteria, min_images=1, max_images=None)
        try:
            chosen, _, _ = run.choose(anything, ranked.stage, "dry run")
            kept = f"{chosen.steps[-1].coverage:.1%} of the pairs keep an entity, however few images it has"
        except InputError as error:  # a precision that the sample does not reach
            kept = f"of the sample alone: {error}"
    seen = sum(part.rows for part in sampled)
    table = Table("stage", "rows a second", "whole", title=f"dry run: {seen:,} of {total:,} rows")
    hours = 0.0
    for name, done in work.items():
        each = _seconds_a_row(done)
        workers = len({one.process for one in done})
        whole = each * (entities if name == "EmbedEntities" else total) / workers
        hours += whole / 3600
        table.add_row(_TITLES[name], f"{workers / each:,.0f}", _clock(whole))
    table.add_row("all", "", _clock(hours * 3600))
    for column in table.columns[1:]:
        column.justify = "right"
    console = Console()
    console.print(table)
    console.print(
        f"disk for the stages: {stored * total / seen / 1e6:,.0f} MB, and the labelled images again"
    )
    console.print("reading keys, sums over the parts and writing shards come on top", highlight=False)
    console.print(kept, highlight=False)


def _seconds_a_row(work: list[_Work]) -> float:
    """Without the first task of each process that did several: it loads the model, and so on."""
    processes = [one.process for one in work]
    again = [one for number, one in enumerate(work) if one.process in processes[:number]]
    counted = again or work
    return sum(one.seconds for one in counted) / max(1, sum(one.rows for one in counted))


def _clock(seconds: float) -> str:
    return f"{seconds // 3600:,.0f}:{seconds % 3600 // 60:02.0f}:{seconds % 60:02.0f}"
