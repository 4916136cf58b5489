"""Examples for the report page, from a few parts of the corpus: whole images are read for these only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np

from mofi_lightning.curation.report.counts import Report
from mofi_lightning.curation.report.data import (
    CandidateExample,
    EntityExample,
    NameExample,
    PairExample,
    ReportData,
    ScoreBins,
)
from mofi_lightning.curation.stages.base import Stage, flat
from mofi_lightning.curation.stages.choose import Chosen
from mofi_lightning.curation.stages.counting import Corpus
from mofi_lightning.curation.stages.images import usable_images
from mofi_lightning.curation.stages.labels import RankCandidates
from mofi_lightning.curation.stages.parts import Part

_PARTS = 6
_EACH = 12  # of each kind of example
_PICTURES = 4  # of an entity
_BINS = 60


class _Seen(NamedTuple):
    """What is known of one part.

    Attributes:
        part: the part.
        labels: rows of its labels: row, key, entity, class, score.
        ranked: row, entity (row of the knowledge base) and score of its best candidates.
    """

    part: Part
    labels: list[dict[str, Any]]
    ranked: list[dict[str, Any]]


def collect(
    corpus: Corpus, ranking: RankCandidates, labels: Stage, chosen: Chosen, report: Report, title: str
) -> ReportData:
    """What the report page shows.

    Args:
        corpus: the parts, and what is known of them.
        ranking: the ranked candidates.
        labels: the labels.
        chosen: what was chosen.
        report: the counts.
        title: of the page.
    """
    random = Random(0)
    parts = [corpus.parts[index * len(corpus.parts) // _PARTS] for index in range(_PARTS)]
    seen = [
        _Seen(
            part,
            labels.read(part.number, "row", "key", "entity", "class", "score").to_pylist(),
            _best(ranking, part),
        )
        for part in dict.fromkeys(parts)
    ]
    kept, rejected, ambiguous = [], [], []
    for one in seen:
        each = -(-_EACH // len(seen))
        kept += _kept(corpus, one, random, each)
        rejected += _rejected(corpus, one, chosen, random, each)
        ambiguous += _ambiguous(corpus, ranking, one, random, each)
    counts = np.array(chosen.vocabulary.counts, dtype=np.int64)
    frequent = np.argsort(-counts, kind="stable")[:_EACH].tolist()
    shown = sorted({label["class"] for one in seen for label in one.labels})
    others = sorted(random.sample(shown, min(_EACH, len(shown))))
    pictures = _pictures(seen, {*frequent, *others})
    return ReportData(
        title=f"Curation of {title}",
        steps=report.steps,
        removed=report.removed,
        faults=report.undecodable_images,
        histogram=_histogram(chosen),
        images_per_entity=sorted(counts[counts > 0].tolist(), reverse=True),
        frequent=[_entity(chosen, class_id, pictures) for class_id in frequent],
        random=[_entity(chosen, class_id, pictures) for class_id in others],
        kept=kept[:_EACH],
        rejected=rejected[:_EACH],
        ambiguous=ambiguous[:_EACH],
    )


def _best(ranking: RankCandidates, part: Part) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ranking.stage.read(part.number, "row", "entity", "score").to_pylist()
    return found


def _read(part: Part, rows: Sequence[int]) -> dict[int, tuple[str, bytes, str]]:
    """Key, image and text of some rows of a part."""
    wanted, found, row = set(rows), {}, 0
    for batch in part.read("key", "image", "text"):
        for key, image, text in zip(*batch, strict=True):
            if row in wanted:
                found[row] = (key, image or b"", text or "")
            row += 1
        if len(found) == len(wanted):
            break
    return found


def _some(items: Sequence[Any], count: int, random: Random) -> list[Any]:
    return [items[index] for index in sorted(random.sample(range(len(items)), min(count, len(items))))]


def _correct(shown: np.ndarray | None, row: int, entity: int) -> bool | None:
    return None if shown is None or shown[row] == -1 else bool(shown[row] == entity)


def _kept(corpus: Corpus, one: _Seen, random: Random, count: int) -> list[PairExample]:
    labels = _some(one.labels, count, random)
    read = _read(one.part, [label["row"] for label in labels])
    shown, base = corpus.shown(one.part.number), corpus.knowledge_base
    examples = []
    for label in labels:
        key, image, text = read[label["row"]]
        entity = base.row(label["entity"])
        correct = _correct(shown, label["row"], entity)
        name = base[entity].name
        examples.append(PairExample(key, image, text, name, label["score"], "", correct))
    return examples


def _rejected(corpus: Corpus, one: _Seen, chosen: Chosen, random: Random, count: int) -> list[PairExample]:
    base, shown = corpus.knowledge_base, corpus.shown(one.part.number)
    labelled = {(label["row"], label["entity"]) for label in one.labels}
    ids = base.ids([best["entity"] for best in one.ranked])
    left = [best for best, id in zip(one.ranked, ids, strict=True) if (best["row"], id) not in labelled]
    best = _some(left, count, random)
    read = _read(one.part, [label["row"] for label in best])
    duplicate, classes = corpus.duplicate(one.part), frozenset(chosen.vocabulary.ids)
    examples = []
    for label in best:
        key, image, text = read[label["row"]]
        if duplicate[label["row"]]:
            reason = "near-duplicate of an earlier image"
        elif chosen.threshold is not None and label["score"] < chosen.threshold:
            reason = "score below the threshold"
        elif base[label["entity"]].id in classes:
            reason = "the entity has more images than it may"
        else:
            reason = "the entity has too few images"
        correct = _correct(shown, label["row"], label["entity"])
        name = base[label["entity"]].name
        examples.append(PairExample(key, image, text, name, label["score"], reason, correct))
    return examples


def _ambiguous(
    corpus: Corpus, ranking: RankCandidates, one: _Seen, random: Random, count: int
) -> list[NameExample]:
    """Names that may mean two entities or more, with what became of them."""
    number, base = one.part.number, corpus.knowledge_base
    table = corpus.linked.read(number, "mentions", "mention_of")
    mention_of, rows = flat(table["mention_of"])
    mention_of = mention_of[usable_images(corpus.scored, number)[rows]]
    candidates, _ = ranking.candidates(number)
    names, first, sizes = np.unique(
        candidates.rows * 2**20 + mention_of, return_index=True, return_counts=True
    )
    chosen = _some(np.flatnonzero(sizes > 1).tolist(), count, random)
    read = _read(one.part, [int(candidates.rows[first[place]]) for place in chosen])
    labelled = {(label["row"], label["entity"]) for label in one.labels}
    examples = []
    for place in chosen:
        row, mention = int(names[place]) // 2**20, int(names[place]) % 2**20
        _, image, text = read[row]
        meant = np.flatnonzero((candidates.rows == row) & (mention_of == mention)).tolist()
        found = []
        for index in meant:
            entity = base[int(candidates.entities[index])]
            fit = None if candidates.similarities is None else float(candidates.similarities[index])
            label = (row, entity.id) in labelled
            link = float(candidates.links[index])
            found.append(CandidateExample(entity.id, entity.name, entity.description, link, fit, label))
        name = table["mentions"][row].as_py()[mention]
        examples.append(NameExample(name, text, image, found))
    return examples


def _pictures(seen: Sequence[_Seen], classes: set[int]) -> Mapping[int, list[bytes]]:
    pictures: dict[int, list[bytes]] = {class_id: [] for class_id in classes}
    for one in seen:
        rows: dict[int, int] = {}
        left = {class_id: _PICTURES - len(found) for class_id, found in pictures.items()}
        for label in one.labels:
            if left.get(label["class"], 0) > 0 and label["row"] not in rows:
                left[label["class"]] -= 1
                rows[label["row"]] = label["class"]
        for row, (_, image, _) in _read(one.part, list(rows)).items():
            pictures[rows[row]].append(image)
    return pictures


def _entity(chosen: Chosen, class_id: int, pictures: Mapping[int, list[bytes]]) -> EntityExample:
    words = chosen.vocabulary
    name, description = words.names[class_id], words.descriptions[class_id]
    return EntityExample(words.ids[class_id], name, description, words.counts[class_id], pictures[class_id])


def _histogram(chosen: Chosen) -> ScoreBins | None:
    if not len(chosen.labels):
        return None
    edges, labels = chosen.labels.bins(_BINS)
    decoys = chosen.decoys.bins(edges)[1].tolist() if len(chosen.decoys) else ()
    return ScoreBins(edges.tolist(), labels.tolist(), decoys, chosen.threshold, chosen.estimated_precision)
