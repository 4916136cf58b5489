"""What the report page of a curation shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mofi_lightning.curation.report.counts import Step


@dataclass(frozen=True)
class ScoreBins:
    """How the scores of labels spread.

    Attributes:
        edges: of the bins, one more than there are bins; increasing.
        labels: number of labels in each bin, before the threshold.
        decoys: number of the same entities scored against wrong images in each bin; empty without them.
        threshold: the lowest score of a label; None without one.
        estimated_precision: of the labels from the threshold on; None where it is not estimated.
    """

    edges: Sequence[float]
    labels: Sequence[int]
    decoys: Sequence[int]
    threshold: float | None
    estimated_precision: float | None = None


@dataclass(frozen=True)
class EntityExample:
    """An entity of the vocabulary.

    Attributes:
        id: in the knowledge base.
        name: the preferred name.
        description: one line of text.
        images: number of its images.
        pictures: some of them, encoded; the first four are shown.
    """

    id: str
    name: str
    description: str
    images: int
    pictures: Sequence[bytes]


@dataclass(frozen=True)
class PairExample:
    """A pair with the entity it got, or did not get.

    Attributes:
        key: of the pair.
        image: the encoded file.
        text: the alt-text.
        entity: name of the entity.
        score: of the label.
        reason: why it was rejected; empty for a label.
        correct: whether the image shows the entity; None where nobody knows.
    """

    key: str
    image: bytes
    text: str
    entity: str
    score: float
    reason: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class CandidateExample:
    """What a name may mean.

    Attributes:
        id: of the entity in the knowledge base.
        name: its preferred name.
        description: one line of text.
        link: P(entity | text), 0..1.
        similarity: how well the image fits; None without an image check.
        chosen: whether it became a label of the image.
    """

    id: str
    name: str
    description: str
    link: float
    similarity: float | None
    chosen: bool


@dataclass(frozen=True)
class NameExample:
    """A name that may mean several entities, in one pair.

    Attributes:
        name: as it stands in the knowledge base.
        text: the alt-text.
        image: the encoded file.
        candidates: likeliest by the text first; the first eight are shown.
    """

    name: str
    text: str
    image: bytes
    candidates: Sequence[CandidateExample]


@dataclass(frozen=True)
class ReportData:
    """What the page shows; the first twelve of each kind of example.

    Attributes:
        title: plain text.
        steps: what stands after each step, in their order.
        removed: number of pairs that each filter removed.
        faults: number of images that cannot be decoded, by kind of fault.
        histogram: the scores; None without scores.
        images_per_entity: of every entity of the vocabulary, descending.
        frequent: the entities with the most images.
        random: entities drawn at random.
        kept: pairs with a label.
        rejected: pairs whose entity became no label.
        ambiguous: names that may mean several entities.
    """

    title: str
    steps: Sequence[Step]
    removed: Mapping[str, int]
    faults: Mapping[str, int]
    histogram: ScoreBins | None
    images_per_entity: Sequence[int]
    frequent: Sequence[EntityExample]
    random: Sequence[EntityExample]
    kept: Sequence[PairExample]
    rejected: Sequence[PairExample]
    ambiguous: Sequence[NameExample]
