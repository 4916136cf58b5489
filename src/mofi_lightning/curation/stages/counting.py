"""The corpus as the last stages see it: its parts, its duplicates, and, where it is known, what it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.labels.filters import Filter, apply_to_corpus
from mofi_lightning.curation.labels.selection import Candidates, Mask, rank
from mofi_lightning.curation.report.counts import Step, Tally
from mofi_lightning.curation.stages.base import Stage
from mofi_lightning.curation.stages.images import candidates_of, usable_images
from mofi_lightning.curation.stages.parts import Part
from mofi_lightning.curation.truth import Truth
from mofi_lightning.progress import track_rows

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Corpus:
    """The parts, and what is known of them.

    Attributes:
        parts: in their order.
        knowledge_base: the entities.
        linked: the texts' candidates.
        scored: what the images are.
        truth: what the images show, if known.
        duplicates: images that a filter of the whole corpus left out, bool `[rows]`.
        named: number of pairs whose text names what they show.
        readable: number of images that can be read and were not left out.
    """

    parts: Sequence[Part]
    knowledge_base: KnowledgeBase
    linked: Stage
    scored: Stage
    truth: Truth | None
    duplicates: Mask = field(init=False)
    named: int = 0
    readable: int = 0
    _starts: np.ndarray = field(init=False)
    _removed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(part.rows for part in self.parts)])
        self.duplicates = np.zeros(self.rows, dtype=bool)

    @property
    def rows(self) -> int:
        """Number of pairs."""
        return int(self._starts[-1])

    def remove(self, filters: Sequence[Filter]) -> None:
        """Leave out what `filters` of the whole corpus remove, and count what can be read."""
        usable = np.concatenate([usable_images(self.scored, part.number) for part in self.parts])
        if filters:
            hashes = [self.scored.read(part.number, "hash")["hash"].to_numpy() for part in self.parts]
            removed = apply_to_corpus(filters, np.concatenate(hashes)[usable])
            for name, mask in removed.items():
                self._removed[name] = int(mask.sum())
                self.duplicates[np.flatnonzero(usable)[mask]] = True
        self.readable = int(usable.sum() - self.duplicates.sum())

    def track(self, title: str) -> Iterator[Part]:
        """The parts, with a progress bar."""
        steps = track_rows((part.rows for part in self.parts), title, self.rows)
        for part, _ in zip(self.parts, steps, strict=True):
            yield part

    def duplicate(self, part: Part) -> Mask:
        """Which images of a part are left out as duplicates, `[part rows]`."""
        mask: Mask = self.duplicates[self._starts[part.number] : self._starts[part.number + 1]]
        return mask

    def keys(self, number: int) -> pa.ChunkedArray:
        """The keys of a part."""
        return self.linked.read(number, "key")["key"]

    def shown(self, number: int) -> np.ndarray | None:
        """The row of the entity that each pair of a part shows, see `Truth`; None where there is no truth."""
        return None if self.truth is None else self.truth.shown(self.keys(number).to_pylist())

    def step(self, tally: Tally) -> Step:
        """What stands after a step."""
        return tally.step(self.rows, self.readable, self.named if self.truth is not None else None)

    def count(self, top_k: int) -> list[Step]:
        """What stands after mention detection and after linking; counts `named` and `readable`."""
        size = len(self.knowledge_base)
        mentions, candidates, best = (
            Tally(name, size) for name in ("mentions", "candidates", "best by text")
        )
        self.named = 0
        for part in self.track("counting candidates"):
            readable = usable_images(self.scored, part.number) & ~self.duplicate(part)
            shown = self.shown(part.number)
            if self.truth is not None and shown is not None:
                texts = (text or "" for (batch,) in part.read("text") for text in batch)
                self.named += self.truth.named(shown, texts)
                mentions.add(*self._mentioned(part, readable), shown)
            rows, entities, links = candidates_of(self.linked, part.number)
            kept = readable[rows]
            candidates.add(rows[kept], entities[kept], shown)
            labels = rank(Candidates(rows[kept], entities[kept], links[kept]), top_k)
            best.add(labels.rows, labels.entities, shown)
        tallies = [candidates, best] if self.truth is None else [mentions, candidates, best]
        return [self.step(tally) for tally in tallies]

    def _mentioned(self, part: Part, readable: Mask) -> tuple[np.ndarray, np.ndarray]:
        """All entities that the mentions of the readable images may mean: row and entity, `[N]` each."""
        aliases = self.knowledge_base.aliases
        rows, entities = [], []
        for row, names in enumerate(self.linked.read(part.number, "mentions")["mentions"].to_pylist()):
            if readable[row]:
                numbers = filter(lambda number: number >= 0, map(aliases.number, names))
                meant = {entity for number in numbers for entity in aliases.candidates(number)[0].tolist()}
                rows += [row] * len(meant)
                entities += sorted(meant)
        return np.array(rows, dtype=np.int64), np.array(entities, dtype=np.int64)

    def removed(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many pairs each filter removed, and how many images have each kind of fault."""
        from mofi_lightning.encoders.decoding import fault_kinds

        filters = Counter(self._removed)
        faults: Counter[str] = Counter()
        for part in self.parts:
            table = self.scored.read(part.number, "removed", "error")
            filters.update(table["removed"].drop_null().to_pylist())
            faults.update(fault_kinds(table["error"].drop_null().to_pylist()))
        return dict(filters.most_common()), dict(faults.most_common())
