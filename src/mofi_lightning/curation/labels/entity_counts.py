"""Images per entity over all parts, and the head cap: the most images that an entity may keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.labels.calibration import ordinals
from mofi_lightning.curation.labels.selection import Floats, Labels, Mask
from mofi_lightning.types import InputError

# the labels of a billion images are 250 MB a bucket
_BUCKETS = 64
# labels collected before they are written, 16 MB
_WAITING = 1 << 20
_LABEL = np.dtype([("entity", "<i4"), ("score", "<f4"), ("part", "<i4"), ("row", "<i4")])


@dataclass(frozen=True)
class Cuts:
    """The last image that each of K entities keeps, where it has more than it may.

    An entity keeps the images with the highest scores; of equal scores those that come first in the corpus.

    Attributes:
        entities: rows of the knowledge base, ascending, int32 `[K]`.
        scores: of the entity's last image, float32 `[K]`.
        parts: the part it lies in, int32 `[K]`.
        rows: its row in the part, int32 `[K]`.
    """

    entities: NDArray[np.int32]
    scores: Floats
    parts: NDArray[np.int32]
    rows: NDArray[np.int32]

    def keeps(self, part: int, labels: Labels) -> Mask:
        """Which of the N labels of a part stay, bool `[N]`."""
        kept = np.ones(len(labels.rows), dtype=bool)
        place = np.searchsorted(self.entities, labels.entities)
        capped = place < len(self.entities)
        capped[capped] = self.entities[place[capped]] == labels.entities[capped]
        cut = place[capped]
        score, last = ordinals(labels.scores[capped]), ordinals(self.scores[cut])
        row = labels.rows[capped]
        in_order = (part < self.parts[cut]) | ((part == self.parts[cut]) & (row <= self.rows[cut]))
        kept[capped] = (score > last) | ((score == last) & in_order)
        return kept


class EntityCounts:
    """Number of images of every entity, counted part by part.

    A cap needs every label of an entity at once: only for it the labels are written to files by entity, 16
    bytes each, and read one file at a time. Parts are added once each, in their order.

    Args:
        entities: number of entities of the knowledge base, E.
        spill: folder for the labels, made if it is missing; None if there will be no cap.

    Attributes:
        counts: images of each entity before the cap, int64 `[E]`.
    """

    def __init__(self, entities: int, spill: Path | None = None) -> None:
        self.counts = np.zeros(entities, dtype=np.int64)
        self._spill = spill
        self._last_part = -1
        self._waiting: list[NDArray[np.void]] = []
        if spill is not None:
            spill.mkdir(parents=True, exist_ok=True)
            self._delete()  # what a run that was interrupted has left

    def add(self, part: int, labels: Labels) -> None:
        """Count the labels of a part.

        Raises:
            ValueError: the part does not come after the one before.
        """
        if part <= self._last_part:
            raise ValueError(
                f"part {part} comes after part {self._last_part}; parts are added in order, once"
            )
        self._last_part = part
        np.add.at(self.counts, labels.entities, 1)
        if self._spill is not None:
            spilled = np.empty(len(labels.rows), dtype=_LABEL)
            spilled["entity"], spilled["score"] = labels.entities, labels.scores
            spilled["part"], spilled["row"] = part, labels.rows
            self._waiting.append(spilled)
            if sum(map(len, self._waiting)) >= _WAITING:
                self._write()

    def cuts(self, max_images: int | None) -> Cuts:
        """Where to cut so that no entity keeps more than `max_images`; None cuts nothing. Deletes the files.

        Raises:
            InputError: the files do not hold what was written to them.
            ValueError: there is no folder for the labels.
        """
        last = np.empty(0, dtype=_LABEL)
        if max_images is not None:
            if self._spill is None:
                raise ValueError("a cap needs a folder for the labels")
            self._write()
            over = np.flatnonzero(self.counts > max_images)
            last = np.empty(len(over), dtype=_LABEL)
            for bucket in range(_BUCKETS):
                inside = np.flatnonzero(over % _BUCKETS == bucket)
                if len(inside):
                    last[inside] = self._last_kept(bucket, over[inside], max_images)
        self._waiting = []
        self._delete()
        return Cuts(*(np.ascontiguousarray(last[name]) for name in ("entity", "score", "part", "row")))

    def _last_kept(self, bucket: int, entities: NDArray[np.int64], max_images: int) -> NDArray[np.void]:
        """The label of rank `max_images` of each of `entities`, ascending, all of one bucket."""
        labels = np.fromfile(self._file(bucket), dtype=_LABEL)
        labels = labels[np.isin(labels["entity"], entities)]
        if len(labels) != self.counts[entities].sum():
            raise InputError(f"{self._file(bucket)} lost labels; is the disk full? Run again when it is not")
        # the files are in the order of parts and rows, and a stable sort keeps it among equal scores
        key = labels["entity"].astype(np.uint64) << np.uint64(32) | ~ordinals(labels["score"])
        order = np.argsort(key, kind="stable")
        starts = np.cumsum(self.counts[entities]) - self.counts[entities]
        return np.asarray(labels[order[starts + max_images - 1]])

    def _write(self) -> None:
        if not self._waiting:
            return
        waiting = np.concatenate(self._waiting)
        self._waiting = []
        buckets = (waiting["entity"] % _BUCKETS).astype(np.uint8)
        waiting = waiting[np.argsort(buckets, kind="stable")]
        ends = np.cumsum(np.bincount(buckets, minlength=_BUCKETS))
        for bucket, labels in enumerate(np.split(waiting, ends[:-1])):
            with self._file(bucket).open("ab") as file:
                file.write(labels.tobytes())

    def _delete(self) -> None:
        if self._spill is not None:
            for bucket in range(_BUCKETS):
                self._file(bucket).unlink(missing_ok=True)

    def _file(self, bucket: int) -> Path:
        assert self._spill is not None
        return self._spill / f"labels_{bucket:02d}"
