"""The knowledge base: entities, their names, and which entities a name may mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mofi_lightning.curation import stages
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

_COLUMNS = ("id", "name", "aliases", "description")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*'?")
_APOSTROPHES = str.maketrans("\u2019\u02bc\uff07`", "''''")


def words(text: str) -> list[str]:
    """The normalised words of `text`, the form in which texts and aliases are compared.

    Unicode NFKC and case folding; words are runs of letters and digits (hyphens and underscores separate);
    a possessive ending is cut, other apostrophes are dropped; a plain English plural ending is cut by rule.
    The results are keys, not spelling: `cookies` and `cookie` both give `cooky`.

    >>> words("The dog\u2019s  BISCUITS, two_boxes")
    ['the', 'dog', 'biscuit', 'two', 'box']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return [_stem(word) for word in _WORD.findall(folded.translate(_APOSTROPHES))]


def normalise(text: str) -> str:
    """The normalised words of `text`, joined by single spaces."""
    return " ".join(words(text))


def _stem(word: str) -> str:
    word = word.removesuffix("'").removesuffix("'s").replace("'", "")
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    # singular and plural must meet, so these two apply to both: berrie(s), cookie(s); boxe(s), headache(s)
    if len(word) > 4 and word.endswith("ie"):
        word = word[:-2] + "y"
    elif len(word) > 3 and word.endswith(("xe", "che", "she", "sse", "ze")):
        word = word[:-1]
    return word


@dataclass(frozen=True, eq=False)
class KnowledgeBase:
    """Entities in the order of the file; a row number stands for an entity within curation.

    Attributes:
        entities: id, name, aliases and description of each.
    """

    entities: Sequence[Entity]

    @classmethod
    def load(cls, path: Path) -> KnowledgeBase:
        """Read `path`, a parquet file with the columns id, name, aliases and description.

        Raises:
            InputError: no such file, not parquet or damaged, a column missing or of another type, no entity,
                or an id that occurs twice.
        """
        stages.check_columns(path, "knowledge base", *_COLUMNS)
        rows = (row for batch in stages.read(path, *_COLUMNS) for row in zip(*batch, strict=True))
        return cls.from_entities(
            Entity(id or "", name or "", tuple(filter(None, aliases or ())), description or "")
            for id, name, aliases, description in rows
        )

    @classmethod
    def from_entities(cls, entities: Iterable[Entity]) -> KnowledgeBase:
        """Make a knowledge base of `entities`.

        Raises:
            InputError: an id is missing or occurs twice.
        """
        entities = tuple(entities)
        seen: set[str] = set()
        for row, entity in enumerate(entities):
            if not entity.id or entity.id in seen:
                raise InputError(f"knowledge base row {row}: id {entity.id!r} is empty or occurs twice")
            seen.add(entity.id)
        return cls(entities)

    def __len__(self) -> int:
        return len(self.entities)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row number of every id."""
        return {entity.id: row for row, entity in enumerate(self.entities)}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The normalised name of every entity; empty where it has none."""
        return tuple(normalise(entity.name) for entity in self.entities)

    @cached_property
    def aliases(self) -> tuple[frozenset[str], ...]:
        """The normalised name and aliases of every entity."""
        return tuple(
            frozenset(filter(None, (name, *map(normalise, entity.aliases))))
            for name, entity in zip(self.names, self.entities, strict=True)
        )

    @cached_property
    def candidates(self) -> dict[str, tuple[int, ...]]:
        """The rows of the entities that each normalised alias may mean, ascending."""
        found: dict[str, list[int]] = {}
        for row, aliases in enumerate(self.aliases):
            for alias in aliases:
                found.setdefault(alias, []).append(row)
        return {alias: tuple(rows) for alias, rows in found.items()}
