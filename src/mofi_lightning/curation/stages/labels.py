"""The stages that choose labels: ranking the candidates of each image, then what the whole corpus decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mofi_lightning.curation.images.similarity import combine
from mofi_lightning.curation.labels.selection import Candidates, Labels, rank
from mofi_lightning.curation.stages.agreement import Standard
from mofi_lightning.curation.stages.base import Stage, flat
from mofi_lightning.curation.stages.images import candidates_of, usable_images
from mofi_lightning.curation.stages.parts import Part

if TYPE_CHECKING:
    import pyarrow as pa

    from mofi_lightning.curation.labels.selection import Floats, Mask


def ranked_schema() -> pa.Schema:
    """The best candidates of each image, and in any order the best scores of texts with another image."""
    import pyarrow as pa

    return pa.schema(
        [("row", pa.int32()), ("entity", pa.int32()), ("score", pa.float32()), ("decoy", pa.float32())]
    )


@dataclass(frozen=True)
class RankCandidates:
    """Ranks the candidates of each image of one part by text and image together.

    Attributes:
        stage: gets one file a part, of `ranked_schema`.
        linked: the candidates.
        scored: what the images are, and how they fit the candidates.
        agreed: how the images fit the other images of the candidates; None without.
        standard: brings cosines to one scale; None where no image was scored.
        top_k: the most entities an image keeps.
    """

    stage: Stage
    linked: Stage
    scored: Stage
    agreed: Stage | None
    standard: Standard | None
    top_k: int

    def __call__(self, part: Part) -> int:
        """Rank the candidates of `part`; its number of rows."""
        candidates, wrong = self.candidates(part.number)
        labels = rank(candidates, self.top_k)
        columns = {"row": labels.rows, "entity": labels.entities, "score": labels.scores}
        columns["decoy"] = np.full(len(labels.rows), np.nan, dtype=np.float32)
        if wrong is not None:
            known = ~np.isnan(wrong)
            rows, entities, links = candidates.rows, candidates.entities, candidates.links
            decoys = rank(Candidates(rows[known], entities[known], links[known], wrong[known]), self.top_k)
            columns["decoy"][: len(decoys.scores)] = decoys.scores
        self.stage.write(part.number, columns, ranked_schema())
        return part.rows

    def candidates(self, number: int) -> tuple[Candidates, Floats | None]:
        """The candidates of the usable images of a part; and how other images in their places would fit."""
        rows, entities, links = candidates_of(self.linked, number)
        kept = usable_images(self.scored, number)[rows]
        rows, entities, links = rows[kept], entities[kept], links[kept]
        fits, wrong = (self._similarities(number, which, entities) for which in ("cosines", "decoys"))
        return Candidates(rows, entities, links, fits), wrong

    def _similarities(self, number: int, which: str, entities: np.ndarray) -> Floats | None:
        if self.standard is None:
            return None
        fit: Floats = self.standard.apply(flat(self.scored.read(number, which)[which])[0], entities)
        if self.agreed is None:
            return fit
        agreement, _ = flat(self.agreed.read(number, which)[which])
        return combine(fit, agreement)


def read_ranked(ranked: Stage, number: int, duplicate: Mask) -> tuple[Labels, Floats]:
    """The ranked labels of a part without those of `duplicate` images, and the scores of decoys `[n]`."""
    table = ranked.read(number, "row", "entity", "score", "decoy")
    rows, entities, scores, decoys = (table[name].to_numpy() for name in table.column_names)
    kept = ~duplicate[rows]
    return Labels(rows[kept], entities[kept], scores[kept]), decoys[~np.isnan(decoys)]


def labels_schema() -> pa.Schema:
    """The labels of the data set, ordered by row and best first: `class` is the row of the vocabulary."""
    import pyarrow as pa

    return pa.schema(
        [
            ("row", pa.int32()),
            ("key", pa.string()),
            ("entity", pa.string()),
            ("class", pa.int64()),
            ("score", pa.float32()),
        ]
    )


def candidate_rows(linked: Stage, parts: Iterable[Part], entities: int) -> np.ndarray:
    """The entities that any text may name: rows of the knowledge base of so many `entities`, ascending."""
    found = np.zeros(entities, dtype=bool)
    for part in parts:
        found[flat(linked.read(part.number, "entities")["entities"])[0]] = True
    return np.flatnonzero(found).astype(np.int32)
