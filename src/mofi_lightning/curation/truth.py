"""What the images really show, where the source of the pairs knows it: labels are measured against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mofi_lightning.curation import stages
from mofi_lightning.curation.knowledge_base import KnowledgeBase, normalise
from mofi_lightning.curation.selection import Ints


@dataclass(frozen=True)
class Truth:
    """What the pairs show.

    Attributes:
        shown: row of the shown entity in the knowledge base for each pair, `[pairs]`; -1 where nobody knows,
            -2 for an entity outside the knowledge base.
        named: number of pairs whose text names what they show.
    """

    shown: Ints
    named: int

    @classmethod
    def load(cls, path: Path, pairs: Path, knowledge_base: KnowledgeBase) -> Truth:
        """Read what the pairs of the file `pairs` show from the columns key, split and entity of `path`.

        A text names an entity if the normalised name or an alias stands in it as whole words.

        Raises:
            InputError: `path` is missing, no parquet file, empty, or lacks a column.
        """
        stages.check_columns(path, "truth file", "key", "split", "entity")
        entity_of = {
            key: entity
            for batch in stages.read(path, "key", "split", "entity")
            for key, split, entity in zip(*batch, strict=True)
            if split == pairs.stem and entity is not None
        }
        shown, named = [], 0
        for keys, texts in stages.read(pairs, "key", "text"):
            for key, text in zip(keys, texts, strict=True):
                entity = knowledge_base.rows.get(entity_of[key], -2) if key in entity_of else -1
                shown.append(entity)
                named += entity >= 0 and _names(text or "", knowledge_base.aliases[entity])
        return cls(np.array(shown, dtype=np.int64), named)


def _names(text: str, aliases: Iterable[str]) -> bool:
    spaced = f" {normalise(text)} "
    return any(f" {alias} " in spaced for alias in aliases)
