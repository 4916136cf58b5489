"""What the whole corpus decides: the threshold, the vocabulary, the head cap. No image is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.labels.calibration import (
    ScoreHistogram,
    estimated_precision,
    threshold_of_precision,
)
from mofi_lightning.curation.labels.class_ids import assign_class_ids
from mofi_lightning.curation.labels.entity_counts import EntityCounts
from mofi_lightning.curation.labels.selection import Criteria, Floats, Labels
from mofi_lightning.curation.report.counts import Step, Tally
from mofi_lightning.curation.stages.base import Stage
from mofi_lightning.curation.stages.labels import labels_schema, read_ranked
from mofi_lightning.curation.stages.parts import Part
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.curation.stages.counting import Corpus


class Chosen(NamedTuple):
    """What was chosen.

    Attributes:
        vocabulary: the entities of the data set.
        threshold: the lowest score of a label; None where there was no limit.
        estimated_precision: of the labels from the threshold on, by their decoys; None without decoys.
        labels: scores of the best candidates of all images.
        decoys: scores of the same candidates with other images.
        steps: what stands after each step.
    """

    vocabulary: EntityVocabulary
    threshold: float | None
    estimated_precision: float | None
    labels: ScoreHistogram
    decoys: ScoreHistogram
    steps: Sequence[Step]


@dataclass(frozen=True)
class Chooser:
    """Chooses the labels among the ranked candidates.

    Attributes:
        corpus: the parts, and what is known of them.
        ranked: the ranked candidates.
        labels: stage of the labels that are chosen; gets one file a part.
        criteria: what a label must meet.
        previous: vocabulary that is extended, if any.
        work: folder for the shuffle; what is in it is of no use afterwards.
    """

    corpus: Corpus
    ranked: Stage
    labels: Stage
    criteria: Criteria
    previous: EntityVocabulary | None
    work: Path

    def choose(self) -> Chosen:
        """Write the labels of every part.

        Raises:
            InputError: no label is left, or the target precision cannot be reached.
        """
        base = self.corpus.knowledge_base
        found, decoys = self._histograms()
        threshold = self._threshold(found, decoys)
        estimate = None
        if len(decoys) and threshold is not None:
            estimate = estimated_precision(found, decoys, threshold)
        counts = EntityCounts(len(base), None if self.criteria.max_images is None else self.work)
        best, over = Tally("best by score", len(base)), Tally(f"scores from {threshold or 0:.4g}", len(base))
        for part, labels, _ in self._ranked("counting entities"):
            shown = self.corpus.shown(part.number)
            best.add(labels.rows, labels.entities, shown)
            labels = _from(labels, threshold)
            over.add(labels.rows, labels.entities, shown)
            counts.add(part.number, labels)
        cuts = counts.cuts(self.criteria.max_images)
        rows, class_of = assign_class_ids(
            counts.counts,
            self.criteria.min_images,
            base.ids,
            None if self.previous is None else list(self.previous.ids),
        )
        known = "" if self.previous is None else ", or known"
        enough = Tally(f"{self.criteria.min_images}+ images{known}", len(base))
        capped = Tally(f"at most {self.criteria.max_images} images", len(base))
        final = np.zeros(len(rows), dtype=np.int64)
        for part, labels, _ in self._ranked("choosing labels"):
            shown = self.corpus.shown(part.number)
            labels = _from(labels, threshold)
            labels = labels.where(class_of[labels.entities] >= 0)
            enough.add(labels.rows, labels.entities, shown)
            labels = labels.where(cuts.keeps(part.number, labels))
            capped.add(labels.rows, labels.entities, shown)
            classes = class_of[labels.entities]
            final += np.bincount(classes, minlength=len(rows))
            self._write(part, labels, classes)
        tallies = [best, *([over] if threshold is not None else []), enough]
        tallies += [capped] if self.criteria.max_images is not None else []
        steps = [self.corpus.step(tally) for tally in tallies]
        if not steps[-1].labels:
            said = ", ".join(f"{step.labels:,} after '{step.step}'" for step in steps)
            raise InputError(
                f"no label is left ({said}); ease the criteria, or check that pairs and knowledge base match"
            )
        vocabulary = _vocabulary(base, rows, final, self.previous)
        return Chosen(vocabulary, threshold, estimate, found, decoys, steps)

    def _ranked(self, title: str) -> Iterator[tuple[Part, Labels, Floats]]:
        for part in self.corpus.track(title):
            yield part, *read_ranked(self.ranked, part.number, self.corpus.duplicate(part))

    def _histograms(self) -> tuple[ScoreHistogram, ScoreHistogram]:
        found, decoys = ScoreHistogram(), ScoreHistogram()
        for _, labels, decoy in self._ranked("reading scores"):
            found.add(labels.scores)
            decoys.add(decoy[~np.isnan(decoy)])
        return found, decoys

    def _threshold(self, found: ScoreHistogram, decoys: ScoreHistogram) -> float | None:
        if self.criteria.keep is not None and len(found):
            return found.threshold_of_share(self.criteria.keep)
        if self.criteria.precision is not None:
            if not len(decoys):
                raise InputError(
                    f"precision {self.criteria.precision} is estimated from images in the places of others, "
                    "which a part has too few of; raise --part_rows, or write pairs with larger row groups"
                )
            return threshold_of_precision(found, decoys, self.criteria.precision)
        return self.criteria.threshold

    def _write(self, part: Part, labels: Labels, classes: np.ndarray) -> None:
        keys = self.corpus.keys(part.number).take(labels.rows)
        ids = self.corpus.knowledge_base.ids(labels.entities)
        columns = {"row": labels.rows, "key": keys, "entity": ids, "class": classes, "score": labels.scores}
        self.labels.write(part.number, columns, labels_schema())


def _from(labels: Labels, threshold: float | None) -> Labels:
    return labels if threshold is None else labels.where(labels.scores >= threshold)


def _vocabulary(
    base: KnowledgeBase, rows: np.ndarray, counts: np.ndarray, previous: EntityVocabulary | None
) -> EntityVocabulary:
    """The entities at `rows` of the knowledge base; those that it no longer has come from `previous`."""
    ids, names, descriptions = [], [], []
    for class_id, row in enumerate(rows.tolist()):
        if row >= 0:
            entity = base[row]
            ids.append(entity.id)
            names.append(entity.name)
            descriptions.append(entity.description)
        else:
            assert previous is not None
            ids.append(previous.ids[class_id])
            names.append(previous.names[class_id])
            descriptions.append(previous.descriptions[class_id])
    return EntityVocabulary.from_columns(ids, names, descriptions, counts.tolist())
