"""Selection: which candidates become labels. Pure, and cheap enough to be run again and again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.types import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """N candidate labels of all images, flat.

    Attributes:
        rows: the image, `[N]`.
        entities: row of the knowledge base, `[N]`; an image names an entity once.
        links: P(entity | text), `[N]`, above 0.
        similarities: how well the image fits the entity, `[N]`; None where no image was checked.
    """

    rows: Ints
    entities: Ints
    links: Floats
    similarities: Floats | None = None

    @property
    def scores(self) -> Floats:
        """What ranks candidates, `[N]`: log P(entity | text), plus the similarity where there is one.

        Text and image count as independent evidence, one standard deviation of the similarity as one unit.
        """
        text = np.log(self.links)
        return text if self.similarities is None else text + self.similarities


@dataclass(frozen=True)
class Criteria:
    """What a label must meet, in the order in which it is applied.

    Attributes:
        top_k: the most entities an image keeps.
        threshold: the lowest score of a label.
        keep: share of the labels to keep, those with the highest scores.
        min_images: the fewest images of an entity.

    Raises:
        InputError: a value is out of range, or both threshold and keep are given.
    """

    top_k: int = 1
    threshold: float | None = None
    keep: float | None = None
    min_images: int = 1

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k {self.top_k} is out of range; an image keeps at least 1 entity")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise InputError(f"threshold {self.threshold} is no score that a label could have; give a number")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputError(
                f"keep {self.keep} is out of range; it is a share of the labels, above 0, at most 1"
            )
        if self.threshold is not None and self.keep is not None:
            raise InputError(f"threshold {self.threshold} and keep {self.keep} exclude each other; give one")
        if self.min_images < 1:
            raise InputError(f"min_images {self.min_images} is out of range; an entity has at least 1 image")


def select(candidates: Candidates, criteria: Criteria) -> Iterator[tuple[str, Mask]]:
    """The criteria one after the other: the step's name, and which candidates are left, `[N]`.

    The last are the labels. Equal scores are ordered by image, then by entity, so results are reproducible.
    """
    rows, entities, scores = candidates.rows, candidates.entities, candidates.scores
    kept = best(rows, entities, scores, criteria.top_k)
    yield "best by score", kept
    if criteria.threshold is not None:
        kept = kept & (scores >= criteria.threshold)
        yield f"scores from {criteria.threshold:g}", kept
    if criteria.keep is not None:
        kept = _within(kept, highest(rows[kept], entities[kept], scores[kept], criteria.keep))
        yield f"highest {criteria.keep:.0%}", kept
    kept = _within(kept, frequent(entities[kept], criteria.min_images))
    yield f"{criteria.min_images}+ images", kept


def best(rows: Ints, entities: Ints, scores: Floats, top_k: int) -> Mask:
    """The `top_k` candidates of each image with the highest scores, `[N]`."""
    order = np.lexsort((entities, -scores, rows))
    ordered = rows[order]
    rank = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    kept = np.zeros(len(rows), dtype=bool)
    kept[order] = rank < top_k
    return kept


def highest(rows: Ints, entities: Ints, scores: Floats, keep: float) -> Mask:
    """The share `keep` of all candidates with the highest scores, rounded to whole candidates, `[N]`."""
    order = np.lexsort((entities, rows, -scores))
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[: round(keep * len(scores))]] = True
    return kept


def frequent(entities: Ints, min_images: int) -> Mask:
    """The candidates whose entity has at least `min_images` of them, `[N]`."""
    _, inverse, counts = np.unique(entities, return_inverse=True, return_counts=True)
    kept: Mask = counts[inverse] >= min_images
    return kept


def _within(kept: Mask, part: Mask) -> Mask:
    """`kept` without those of its candidates that are not in `part`, a mask of these alone."""
    narrowed = kept.copy()
    narrowed[kept] = part
    return narrowed
