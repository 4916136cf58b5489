"""What the images really show, where the source of the pairs knows it: labels are measured against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import normalise
from mofi_lightning.sources import tables
from mofi_lightning.types import InputError

UNKNOWN, OUTSIDE = -1, -2


@dataclass(frozen=True)
class Truth:
    """What the pairs show; measurement alone may see it.

    Attributes:
        knowledge_base: the entities.
        row_of: key -> row of the shown entity; `OUTSIDE` for one that the knowledge base does not have.
    """

    knowledge_base: KnowledgeBase
    row_of: Mapping[str, int]

    @classmethod
    def load(cls, path: Path, splits: Sequence[str], knowledge_base: KnowledgeBase) -> Truth:
        """Read what pairs show from the columns key, split and entity of `path`.

        Args:
            path: the file.
            splits: names of the pairs' split; the first one that the file has.
            knowledge_base: the entities.

        Raises:
            InputError: `path` is missing, no parquet file, empty, lacks a column, or has none of the splits.
        """
        columns = ("key", "split", "entity")
        tables.check_table(path, "truth file", {name: tables.KINDS[name] for name in columns})
        rows: dict[str, int] = {}
        row_of: dict[str, dict[str, int]] = {}
        for batch in tables.iterate(path, columns, 1024):
            for key, of, entity in zip(*batch, strict=True):
                if of in splits and entity is not None:
                    if entity not in rows:
                        rows[entity] = knowledge_base.row(entity)
                    found = row_of.setdefault(of, {})
                    found[key] = rows[entity] if rows[entity] >= 0 else OUTSIDE
        if not row_of:
            raise InputError(
                f"truth file {path} has no split {' or '.join(map(repr, splits))}; name another one"
            )
        return cls(knowledge_base, next(row_of[split] for split in splits if split in row_of))

    def shown(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of the entity that each pair shows, `[n]`; `UNKNOWN` where nobody knows."""
        return np.array([self.row_of.get(key, UNKNOWN) for key in keys], dtype=np.int64)

    def named(self, shown: NDArray[np.int64], texts: Iterable[str]) -> int:
        """Number of pairs whose text has the name, or an alias, of what they show as whole words."""
        names: dict[int, list[str]] = {}
        count = 0
        for row, text in zip(shown.tolist(), texts, strict=True):
            if row >= 0:
                if row not in names:
                    entity = self.knowledge_base[row]
                    found = map(normalise, (entity.name, *entity.aliases))
                    names[row] = [f" {name} " for name in found if name]
                spaced = f" {normalise(text)} "
                count += any(name in spaced for name in names[row])
        return count
