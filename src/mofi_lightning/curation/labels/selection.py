"""Selection: which candidates are labels. Pure, and cheap enough to be run again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.types import InputError

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """N candidate labels of the images of a part, flat.

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


class Labels(NamedTuple):
    """N labels of the images of a part, ordered by image, then from the highest score to the lowest.

    Attributes:
        rows: the image, int32 `[N]`.
        entities: row of the knowledge base, int32 `[N]`.
        scores: float32 `[N]`.
    """

    rows: NDArray[np.int32]
    entities: NDArray[np.int32]
    scores: Floats

    def where(self, kept: Mask) -> Labels:
        """The labels in the mask `kept`, `[N]`."""
        return Labels(self.rows[kept], self.entities[kept], self.scores[kept])


@dataclass(frozen=True)
class Criteria:
    """What a label must meet.

    Attributes:
        top_k: the most entities an image keeps.
        threshold: the lowest score of a label.
        keep: share of the labels to keep, those with the highest scores.
        precision: estimated share of correct labels to reach (`calibration.threshold_of_precision`).
        min_images: the fewest images of an entity.
        max_images: the most images of an entity, those with the highest scores; None for any number.

    Raises:
        InputError: a value is out of range, or more than one of threshold, keep and precision is given.
    """

    top_k: int = 1
    threshold: float | None = None
    keep: float | None = None
    precision: float | None = None
    min_images: int = 5
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k {self.top_k} is out of range; an image keeps at least 1 entity")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise InputError(f"threshold {self.threshold} is no score that a label could have; give a number")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputError(
                f"keep {self.keep} is out of range; it is a share of the labels, above 0, at most 1"
            )
        if self.precision is not None and not 0 < self.precision < 1:
            raise InputError(
                f"precision {self.precision} is out of range; it is a share of the labels, above 0, below 1"
            )
        cuts = {"threshold": self.threshold, "keep": self.keep, "precision": self.precision}
        given = [f"{name} {value}" for name, value in cuts.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other; give one")
        if self.min_images < 1:
            raise InputError(f"min_images {self.min_images} is out of range; an entity has at least 1 image")
        if self.max_images is not None and self.max_images < self.min_images:
            raise InputError(
                f"max_images {self.max_images} is below min_images {self.min_images}; "
                "entities would lose images that they need"
            )


def rank(candidates: Candidates, top_k: int) -> Labels:
    """The `top_k` candidates of each image with the highest scores; of equal ones the lower entity first."""
    rows, entities, scores = candidates.rows, candidates.entities, candidates.scores
    order = np.lexsort((entities, -scores, rows))
    ordered = rows[order]
    place = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    best = order[place < top_k]
    return Labels(
        rows[best].astype(np.int32), entities[best].astype(np.int32), scores[best].astype(np.float32)
    )
