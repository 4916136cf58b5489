"""The end of a curation: shards, report, and the move of both to their place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from mofi_lightning.curation.report.counts import Report, Step
from mofi_lightning.curation.stages.base import Stage
from mofi_lightning.curation.stages.choose import Chosen
from mofi_lightning.curation.stages.counting import Corpus
from mofi_lightning.curation.stages.engines import Map
from mofi_lightning.curation.stages.labels import RankCandidates
from mofi_lightning.curation.stages.shards import WriteShards
from mofi_lightning.data import writing
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.progress import track_rows
from mofi_lightning.types import InputError

COUNTS, PAGE = "curation.json", "report.html"


def is_finished(output: Path, made_from: str) -> bool:
    """Whether `output` is what `made_from` stands for; its counts are printed then."""
    try:
        found = json.loads((output / COUNTS).read_text())
        parts = (PAGE, "dataset.json", "vocabulary.arrow", "shards/index.json")
        if found["fingerprint"] != made_from or not all((output / part).is_file() for part in parts):
            return False
        report = Report(**{**found, "steps": [Step(**step) for step in found["steps"]]})
    except (OSError, ValueError, KeyError, TypeError):
        return False
    report.print()
    print(f"nothing has changed: {output} stays as it is")
    return True


def finish(
    map_parts: Map,
    corpus: Corpus,
    ranking: RankCandidates,
    labels: Stage,
    chosen: Chosen,
    output: Path,
    folder: Path,
) -> None:
    """Write the data set, the page and the counts.

    Args:
        map_parts: the engine.
        corpus: the parts, and what is known of them.
        ranking: the ranked candidates.
        labels: the labels.
        chosen: what was chosen.
        output: folder of the data set.
        folder: of the stages.
    """
    from mofi_lightning.curation.report.examples import collect
    from mofi_lightning.curation.report.page import write_report

    (output / COUNTS).unlink(missing_ok=True)  # what is there is not yet what it says
    fresh = folder / f"dataset-{labels.fingerprint[:16]}"
    for other in [*folder.glob("dataset-*"), *folder.glob(".dataset-*.partial")]:
        if other.name not in (fresh.name, f".{fresh.name}.partial"):
            shutil.rmtree(other)
    # a move that was interrupted has left its rest
    if not fresh.exists():
        _write_shards(map_parts, corpus, labels, chosen, fresh)
    renumbered = _renumbers(output, chosen.vocabulary)
    publish(fresh, output)
    removed, faults = corpus.removed()
    report = Report(
        labels.fingerprint, faults, chosen.steps, removed, chosen.threshold, chosen.estimated_precision
    )
    write_report(output / PAGE, collect(corpus, ranking, labels, chosen, report, output.resolve().name))
    report.save(output / COUNTS)
    report.print()
    if len(chosen.labels) and chosen.threshold is None:
        print("no --threshold, --keep or --precision: an image keeps its best entity, however badly it fits")
    if renumbered:
        print("class ids are not those of the data set that was here; --vocabulary OLD keeps those of OLD")
    print(f"{output / PAGE} shows what was kept and what was not")


def _renumbers(output: Path, vocabulary: EntityVocabulary) -> bool:
    """Whether a class id of the data set in `output` will mean another entity."""
    try:
        old = list(EntityVocabulary.load(output).ids)
    except InputError:
        return False
    return old != list(vocabulary.ids)[: len(old)]


def _write_shards(map_parts: Map, corpus: Corpus, labels: Stage, chosen: Chosen, fresh: Path) -> None:
    with writing.unfinished(fresh) as partial:
        job = WriteShards(partial, labels, len(chosen.vocabulary))
        missing = [part for part in corpus.parts if not job.chunks(part.number)]
        rows = sum(part.rows for part in missing)
        for _ in track_rows(map_parts(job, missing), "writing shards", rows):
            pass
        writing.join_parts(partial, job.numbers(corpus.parts), fresh, chosen.vocabulary)


def publish(fresh: Path, output: Path) -> None:
    """Move the data set `fresh` into `output`, where it is complete once it has its dataset.json.

    A move that was interrupted goes on: what is no longer in `fresh` is in its place.
    """
    if (fresh / "dataset.json").exists():
        (output / "dataset.json").unlink(missing_ok=True)
    for part in sorted(fresh.iterdir(), key=lambda part: part.name == "dataset.json"):
        if (output / part.name).is_dir():
            shutil.rmtree(output / part.name)
        os.replace(part, output / part.name)
    fresh.rmdir()
