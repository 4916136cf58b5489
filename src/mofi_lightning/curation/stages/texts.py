"""The stages that read texts: counting words, linking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mofi_lightning.curation.stages.base import Stage, once_a_process
from mofi_lightning.curation.stages.parts import Part
from mofi_lightning.curation.texts.linking import Linker, Linking
from mofi_lightning.curation.texts.mentions import MentionDetector

if TYPE_CHECKING:
    import pyarrow as pa

# the words of this many texts tell how common each is
_SAMPLE = 1_000_000


def sample(parts: Sequence[Part]) -> list[Part]:
    """Parts of about a million rows, spread evenly over the corpus; all of a smaller one."""
    step = max(1, sum(part.rows for part in parts) // _SAMPLE)
    return list(parts[::step])


@dataclass(frozen=True)
class CountWords:
    """Counts the words of the texts of one part.

    Attributes:
        stage: gets one file `000000.npz` a part.
        knowledge_base: folder.
    """

    stage: Stage
    knowledge_base: Path

    def __call__(self, part: Part) -> int:
        """Write the counts of `part`; its number of rows."""
        from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
        from mofi_lightning.curation.texts.word_counts import WordCounts

        base = once_a_process(f"words/{self.stage.fingerprint}", lambda: KnowledgeBase(self.knowledge_base))
        texts = [text or "" for (batch,) in part.read("text") for text in batch]
        WordCounts.count(texts, base).save(self.stage.file(part.number, ".npz"))
        return part.rows


def linked_schema() -> pa.Schema:
    """The texts with the names they mention and the entities these may mean: rows of the knowledge base."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("mentions", pa.list_(pa.string())),
            ("entities", pa.list_(pa.int32())),
            ("links", pa.list_(pa.float32())),
            ("mention_of", pa.list_(pa.int32())),
        ]
    )


@dataclass(frozen=True)
class LinkTexts:
    """Links the texts of one part.

    Attributes:
        stage: gets one file a part, of `linked_schema`.
        knowledge_base: folder.
        counts: file of the `WordCounts` of the corpus.
        detectors: find the mentions.
        linking: how they are linked.
    """

    stage: Stage
    knowledge_base: Path
    counts: Path
    detectors: tuple[MentionDetector, ...]
    linking: Linking

    def __call__(self, part: Part) -> int:
        """Link the texts of `part`; its number of rows."""
        linker = once_a_process(f"linker/{self.stage.fingerprint}", self._linker)
        columns: dict[str, list[object]] = {name: [] for name in linked_schema().names}
        for keys, texts in part.read("key", "text"):
            found = linker.link([text or "" for text in texts])
            columns["key"] += keys
            for name in ("mentions", "entities", "links", "mention_of"):
                columns[name] += [getattr(linked, name) for linked in found]
        self.stage.write(part.number, columns, linked_schema())
        return part.rows

    def _linker(self) -> Linker:
        from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
        from mofi_lightning.curation.texts.word_counts import WordCounts

        base = KnowledgeBase(self.knowledge_base)
        return Linker(base, WordCounts.load(self.counts), self.detectors, self.linking)
