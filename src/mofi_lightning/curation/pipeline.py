"""The verb `mofi curate`: pairs in, images with entities out, every step counted."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mofi_lightning.curation import scoring, stages
from mofi_lightning.curation.knowledge_base import KnowledgeBase
from mofi_lightning.curation.linking import Linker
from mofi_lightning.curation.report import Report, Step, measure
from mofi_lightning.curation.selection import Candidates, Criteria, Mask, best, select
from mofi_lightning.curation.truth import Truth
from mofi_lightning.data.schema import Row
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import refuse_existing, write_dataset
from mofi_lightning.progress import track
from mofi_lightning.types import InputError

# part of every fingerprint: raised when what a stage writes changes its meaning
_VERSION = 2


def curate(
    pairs: Path,
    output: Path,
    scorer: Path | None = None,
    knowledge_base: Path | None = None,
    truth: Path | None = None,
    candidates: int = 16,
    templates: Sequence[str] = ("{name}", "a picture of {name}", "{name}, {description}"),
    top_k: int = 1,
    threshold: float | None = None,
    keep: float | None = None,
    min_images: int = 5,
) -> None:
    """Turn image + alt-text pairs into images with entities.

    The data set holds the pairs that keep at least one entity. Beside it stand the counts of every step
    (curation.json) and the candidates of every text with their scores (stages/). A second run repeats only
    what has changed: with other criteria, nothing is linked or scored again.

    Args:
        pairs: Parquet file of the pairs (key, image, text), as `mofi pairs` writes it.
        output: Folder of the data set to write.
        scorer: The dual encoder that checks the images: its folder, a run's folder or a checkpoint. Without
            one, the likeliest entities of the text are labels.
        knowledge_base: Parquet file of the entities; knowledge_base.parquet beside the pairs by default.
        truth: Parquet file of what the images show, for measuring only; truth.parquet beside the pairs by
            default, where there is one.
        candidates: The most entities of a text that the scorer chooses among.
        templates: Texts of an entity for the scorer, with {name} and {description}. Their embeddings are
            averaged; wordings like those of the pairs' texts score best.
        top_k: The most entities an image keeps.
        threshold: The lowest score of a label: the logarithm of its probability by the text plus, with a
            scorer, the standard deviations by which the image fits it better than images in general.
        keep: Instead of a threshold, the share of the labels to keep, those with the highest scores.
        min_images: Entities with fewer images are dropped.

    Raises:
        InputError: An input cannot be used, a value is out of range, or no label is left.
    """
    from mofi_lightning.encoders.checkpoint import model_path
    from mofi_lightning.encoders.decoding import fault_kinds

    criteria = Criteria(top_k, threshold, keep, min_images)
    if candidates < 1:
        raise InputError(f"candidates {candidates} is out of range; a text has at least 1")
    scoring.check_templates(templates)
    if scorer is not None:
        if not scorer.exists():
            raise InputError(f"no scorer at {scorer}; give the folder or checkpoint of a dual encoder")
        scorer = model_path(scorer)  # what else is in a run's folder does not change the scores
    if not (output / "stages").is_dir():
        refuse_existing(output)
    total = stages.check_columns(pairs, "pairs file", "key", "image", "text")
    base_path = knowledge_base or pairs.parent / "knowledge_base.parquet"
    base = KnowledgeBase.load(base_path)
    truth_path = truth or pairs.parent / "truth.parquet"
    known = Truth.load(truth_path, pairs, base) if truth or truth_path.is_file() else None

    linked, scored = (output / "stages" / f"{stage}.parquet" for stage in ("linked", "scored"))
    linked_from = stages.fingerprint(_VERSION, pairs, base_path, candidates)
    if not stages.is_current(linked, linked_from):
        _link(pairs, total, base, candidates, linked, linked_from)
    scored_from = stages.fingerprint(linked_from, *([scorer, tuple(templates)] if scorer else []))
    if not stages.is_current(scored, scored_from):
        _score(pairs, total, base, linked, scorer, templates, scored, scored_from)

    found, errors = _read_scored(scored, base)
    if len(errors) == total:
        raise InputError(f"none of the {total:,} images of {pairs} can be decoded; the first: {errors[0]}")
    kept, steps = _select(found, criteria, total, total - len(errors), known)
    written_from = stages.fingerprint(scored_from, criteria)
    if not _is_written(output, written_from):
        fresh = output / "stages" / "dataset"
        shutil.rmtree(fresh, ignore_errors=True)
        _write_dataset(pairs, total, base, found, kept, fresh)
        _publish(fresh, output)
    report = Report(written_from, fault_kinds(errors.values()), steps)
    report.save(output / "curation.json")
    report.print()


def _batches(path: Path, total: int, title: str, *columns: str) -> Iterator[list[list[Any]]]:
    batches = stages.read(path, *columns)
    count = math.ceil(total / stages.BATCH_ROWS)
    yield from track(batches, title, count)


def _link(
    pairs: Path, total: int, base: KnowledgeBase, candidates: int, output: Path, fingerprint: str
) -> None:
    corpus = (text or "" for (texts,) in _batches(pairs, total, "counting words", "text") for text in texts)
    linker = Linker(base, corpus, candidates)
    seen: set[str] = set()

    def batches() -> Iterator[Sequence[Sequence[Any]]]:
        for keys, texts in _batches(pairs, total, "linking texts", "key", "text"):
            for key in keys:
                if key in seen:
                    raise InputError(f"key {key!r} comes twice in pairs file {pairs}; keys must be unique")
                seen.add(key)
            found = [linker.link(text or "") for text in texts]
            ids = [[base.entities[row].id for row in entities] for entities in found]
            yield keys, ids, [list(entities.values()) for entities in found]

    stages.write(output, stages.linked_schema(), batches(), fingerprint)


def _score(
    pairs: Path,
    total: int,
    base: KnowledgeBase,
    linked: Path,
    scorer: Path | None,
    templates: Sequence[str],
    output: Path,
    fingerprint: str,
) -> None:
    images = (
        image or b"" for (batch,) in _batches(pairs, total, "checking images", "image") for image in batch
    )
    similarities: Sequence[list[float] | None]
    if scorer is None:
        similarities, errors = [None] * total, scoring.undecodable(images)
    else:
        entities: list[list[int]] = []
        links: list[list[float]] = []
        for ids, linked_as in stages.read(linked, "entities", "links"):
            entities.extend([base.rows[entity] for entity in found] for found in ids)
            links.extend(linked_as)
        similarities, errors = scoring.check_images(scorer, images, entities, links, base.entities, templates)

    def batches() -> Iterator[Sequence[Sequence[Any]]]:
        start = 0
        for columns in stages.read(linked, "key", "entities", "links"):
            stop = start + len(columns[0])
            yield *columns, similarities[start:stop], [errors.get(row) for row in range(start, stop)]
            start = stop

    stages.write(output, stages.scored_schema(), batches(), fingerprint)


def _read_scored(path: Path, base: KnowledgeBase) -> tuple[Candidates, dict[int, str]]:
    """The candidates of the images that can be read, and pair -> why for the others."""
    rows: list[int] = []
    entities: list[int] = []
    links: list[float] = []
    similarities: list[float] = []
    errors: dict[int, str] = {}
    row = 0
    for batch in stages.read(path, "entities", "links", "similarities", "error"):
        for ids, linked, similar, error in zip(*batch, strict=True):
            if error is None:
                rows.extend([row] * len(ids))
                entities.extend(base.rows[entity] for entity in ids)
                links.extend(linked)
                similarities.extend(similar or ())
            else:
                errors[row] = error
            row += 1
    candidates = Candidates(
        np.array(rows, dtype=np.int64),
        np.array(entities, dtype=np.int64),
        np.array(links, dtype=np.float32),
        np.array(similarities, dtype=np.float32) if similarities else None,
    )
    return candidates, errors


def _select(
    found: Candidates, criteria: Criteria, total: int, usable: int, truth: Truth | None
) -> tuple[Mask, list[Step]]:
    """The labels, and what stands after every step; the truth only measures."""
    masks = [("all candidates", np.ones(len(found.rows), dtype=bool))]
    if found.similarities is not None:  # what the labels would be without the image check
        by_text = best(found.rows, found.entities, found.links, criteria.top_k)
        masks.append(("best by text", by_text))
    masks.extend(select(found, criteria))
    steps = [measure(step, found, kept, total, usable, truth) for step, kept in masks]
    if not steps[-1].labels:
        counts = ", ".join(f"{step.labels:,} after '{step.step}'" for step in steps)
        raise InputError(
            f"no label is left ({counts}); ease the criteria, or check that pairs and knowledge base match"
        )
    return masks[-1][1], steps


def _is_written(output: Path, fingerprint: str) -> bool:
    try:
        report = json.loads((output / "curation.json").read_text())
    except (OSError, ValueError):
        return False
    return (output / "dataset.json").is_file() and report.get("fingerprint") == fingerprint


def _publish(fresh: Path, output: Path) -> None:
    """Move the data set `fresh` into `output`, where a data set is complete once it has its dataset.json."""
    (output / "curation.json").unlink(missing_ok=True)
    (output / "dataset.json").unlink(missing_ok=True)
    for part in sorted(fresh.iterdir(), key=lambda part: part.name == "dataset.json"):
        if (output / part.name).is_dir():
            shutil.rmtree(output / part.name)
        os.replace(part, output / part.name)
    fresh.rmdir()


def _write_dataset(
    pairs: Path,
    total: int,
    base: KnowledgeBase,
    found: Candidates,
    kept: Mask,
    output: Path,
) -> None:
    """Write the images that kept a label; the others have no place among images with entities."""
    counts = Counter(found.entities[kept].tolist())
    order = sorted(counts, key=lambda row: base.entities[row].id)
    class_ids = {row: class_id for class_id, row in enumerate(order)}
    entities = [base.entities[row] for row in order]
    vocabulary = EntityVocabulary.from_columns(
        [entity.id for entity in entities],
        [entity.name for entity in entities],
        [entity.description for entity in entities],
        [counts[row] for row in order],
    )
    labels: dict[int, list[tuple[float, int]]] = {}
    for row, entity, score in zip(
        found.rows[kept].tolist(), found.entities[kept].tolist(), found.scores[kept].tolist(), strict=True
    ):
        # negative, so that the highest score sorts first
        labels.setdefault(row, []).append((-score, class_ids[entity]))

    def rows() -> Iterator[Row]:
        row = 0
        for batch in _batches(pairs, total, "writing shards", "key", "image", "text"):
            for key, image, text in zip(*batch, strict=True):
                if row in labels:
                    best_first = sorted(labels[row])
                    scores = tuple(-negative for negative, _ in best_first)
                    yield Row(key, image, text or "", tuple(entity for _, entity in best_first), scores)
                row += 1

    write_dataset(rows(), output, vocabulary)
