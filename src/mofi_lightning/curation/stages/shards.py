"""The last stage: the images that kept a label, as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mofi_lightning.curation.stages.base import Stage
from mofi_lightning.curation.stages.parts import Part
from mofi_lightning.data import writing
from mofi_lightning.data.schema import Row
from mofi_lightning.types import InputError

# more chunks than a part of the corpus can fill
_CHUNKS = 1_000


@dataclass(frozen=True)
class WriteShards:
    """Writes the labelled rows of one part of the corpus as chunks of a data set.

    The chunks of part n are numbered from 1,000 n on, so that parts can be written in any order. The first
    one is written last, and its notes say how many there are: it is the sign that the part is done.

    Attributes:
        partial: folder of the unfinished data set.
        labels: the labels.
        classes: number of entities of the vocabulary.
    """

    partial: Path
    labels: Stage
    classes: int

    def __call__(self, part: Part) -> int:
        """Write the chunks of `part`; its number of rows.

        Raises:
            InputError: the rows of the part fill too many chunks.
        """
        first: list[Row] = []
        chunks = 0
        for chunks, block in enumerate(writing.blocks(self._rows(part)), 1):
            if chunks > _CHUNKS:
                raise InputError(
                    f"part {part.number}, rows of {part.file}, fills more than {_CHUNKS:,} chunks; write the "
                    "pairs with smaller row groups"
                )
            if chunks == 1:
                first = block
            else:
                number = _CHUNKS * part.number + chunks - 1
                writing.write_part(self.partial, number, block, self.classes, {})
        notes = {"labels": self.labels.fingerprint, "chunks": max(1, chunks)}
        writing.write_part(self.partial, _CHUNKS * part.number, first, self.classes, notes)
        return part.rows

    def chunks(self, number: int) -> int:
        """Number of chunks of part `number`; 0 if it is not done."""
        notes = writing.read_notes(self.partial, _CHUNKS * number)
        if notes is None or notes["labels"] != self.labels.fingerprint:
            return 0
        first, chunks = _CHUNKS * number, int(notes["chunks"])
        others = (writing.read_notes(self.partial, first + chunk) for chunk in range(1, chunks))
        return 0 if None in others else chunks

    def numbers(self, parts: Iterable[Part]) -> list[int]:
        """Numbers of the chunks of all `parts`, which are done."""
        return [_CHUNKS * p.number + chunk for p in parts for chunk in range(self.chunks(p.number))]

    def _rows(self, part: Part) -> Iterator[Row]:
        table = self.labels.read(part.number, "row", "class", "score")
        found = zip(*(column.to_pylist() for column in table.columns), strict=True)
        labels = {row: list(group) for row, group in groupby(found, key=lambda label: label[0])}
        if not labels:
            return
        row = 0
        for batch in part.read("key", "image", "text"):
            for key, image, text in zip(*batch, strict=True):
                if row in labels:
                    classes, scores = zip(*((entity, score) for _, entity, score in labels[row]), strict=True)
                    yield Row(key, image, text or "", classes, scores)
                row += 1
