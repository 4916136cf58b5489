"""The stage in which the images of an entity are compared with each other, and the scale of similarities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mofi_lightning.curation.stages.base import Stage, atomic, flat
from mofi_lightning.curation.stages.images import candidates_of, usable_images
from mofi_lightning.curation.stages.parts import Part

if TYPE_CHECKING:
    from mofi_lightning.curation.images.similarity import Moments


@dataclass(frozen=True)
class Standard:
    """What brings cosines to one scale.

    Attributes:
        rows: file of the candidates' rows in the knowledge base, int32 `[U]`.
        statistics: folder of `mean.npy` and `deviation.npy` of the candidates' cosines, float32 `[U]`, and of
            `moments.npz`, of all images.
    """

    rows: Path
    statistics: Path

    def places(self, entities: np.ndarray) -> np.ndarray:
        """Where `entities`, rows of the knowledge base, stand among the candidates."""
        return np.searchsorted(np.load(self.rows, mmap_mode="r"), entities)

    def apply(self, cosines: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """`cosines` `[N]` with `entities` `[N]` in standard deviations above those of all images."""
        from mofi_lightning.curation.images.similarity import standardise

        places = self.places(entities)
        mean, deviation = (
            np.load(self.statistics / f"{name}.npy", mmap_mode="r") for name in ("mean", "deviation")
        )
        return standardise(cosines, mean[places], deviation[places])

    @property
    def moments(self) -> Moments:
        """Of the embeddings of all images."""
        from mofi_lightning.curation.images.similarity import Moments

        return Moments.load(self.statistics / "moments.npz")


class _Images(NamedTuple):
    """The images of a part and their candidates.

    Attributes:
        embeddings: `[part rows, D]`, NaN where unusable, and of copies.
        usable: which images count, `[part rows]`.
        rows: image of each candidate, `[N]`.
        places: of its entity among the candidates, `[N]`.
        weights: how likely the image shows it, `[N]`.
    """

    embeddings: np.ndarray
    usable: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How well the images of a part fit the other images of the entities that they may show.

    A copy of an earlier image counts nowhere and has no agreement: copies would vouch for each other.

    Attributes:
        stage: gets one file a part: lists `cosines` and `decoys`, standardised, aligned with the scored ones.
        linked: the candidates.
        scored: the images' embeddings and cosines.
        copies: a file a part, which of its images are copies, bool `[part rows]`.
        standard: brings cosines to one scale.
        before: the agreement with which images were weighed less exactly; None for the first pass.
    """

    stage: Stage
    linked: Stage
    scored: Stage
    copies: Stage
    standard: Standard
    before: Stage | None

    def is_summed(self) -> bool:
        """Whether `sum` was done."""
        return (self.stage.folder / "counts.npy").exists()

    def sum(self, parts: Iterable[Part]) -> None:
        """Sum the images of each entity over the corpus: one part after the other, in their order."""
        from mofi_lightning.curation.images.similarity import EntitySums

        moments, count = self.standard.moments, len(np.load(self.standard.rows, mmap_mode="r"))
        background = moments.background
        with atomic(self.stage.folder / "sums.npy") as file:
            sums = np.lib.format.open_memmap(file, "w+", np.float32, (count, len(moments.sum)))
            total = EntitySums(sums)
            for part in parts:
                found = self._images(part)
                total.accumulate(background, found.embeddings, found.rows, found.places, found.weights)
            sums.flush()
        with atomic(self.stage.folder / "counts.npy") as file:
            np.save(file, total.counts)

    def __call__(self, part: Part) -> int:
        """Write the agreement of the images of `part`; its number of rows."""
        import pyarrow as pa

        from mofi_lightning.curation.images.scoring import partners
        from mofi_lightning.curation.images.similarity import EntitySums, agreement_of_part

        total = EntitySums(np.load(self.stage.folder / "sums.npy", mmap_mode="r"))
        total.counts = np.load(self.stage.folder / "counts.npy", mmap_mode="r")
        found = self._images(part)
        pairing = partners(self.scored.read(part.number, "hash")["hash"].to_numpy(), found.usable)
        agreement = agreement_of_part(
            total,
            self.standard.moments.background,
            found.embeddings,
            found.rows,
            found.places,
            found.weights,
            pairing,
        )
        ends = np.cumsum(np.bincount(found.rows, minlength=part.rows))
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
        names = ("cosines", "decoys")
        columns = {
            name: pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32()))
            for name, values in zip(names, agreement, strict=True)
        }
        schema = pa.schema([(name, pa.list_(pa.float32())) for name in names])
        self.stage.write(part.number, columns, schema)
        return part.rows

    def _images(self, part: Part) -> _Images:
        from mofi_lightning.curation.images.similarity import combine, posterior

        table = self.scored.read(part.number, "embedding", "cosines")
        values = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        usable = usable_images(self.scored, part.number)
        rows, entities, links = candidates_of(self.linked, part.number)
        kept = usable[rows]
        rows, entities, links = rows[kept], entities[kept], links[kept]
        fit = self.standard.apply(flat(table["cosines"])[0], entities)
        if self.before is not None:
            fit = combine(fit, flat(self.before.read(part.number, "cosines")["cosines"])[0])
        weights = posterior(rows, links, fit)
        embeddings = values.reshape(part.rows, -1).copy()
        embeddings[np.load(self.copies.file(part.number, ".npy"))] = np.nan
        return _Images(embeddings, usable, rows, self.standard.places(entities), weights)
