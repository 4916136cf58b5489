"""What the linker knows before it sees a text: what a name may mean, what tells an entity from others."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import normalise
from mofi_lightning.curation.texts.word_counts import WordCounts
from mofi_lightning.encoders.label_encoders import label_text

# meanings of a name that are weighed, the most popular ones: thousands of people are called John Smith
MEANINGS = 64
# entities from which the share of entities with a word or a type is estimated
_SAMPLE = 16_384
# names and entities that a process remembers
_KEPT = 32_768


class Name(NamedTuple):
    """A name.

    Attributes:
        text: normalised.
        rows: the entities it may mean, ascending: all, or the 64 most popular ones.
        priors: the evidence for each of them that the name alone gives.
        words: the numbers of its words.
    """

    text: str
    rows: tuple[int, ...]
    priors: tuple[float, ...]
    words: frozenset[int]


class Profile(NamedTuple):
    """An entity.

    Attributes:
        names: number of its names.
        words: the words of its names and description -> evidence of each where it stands in a text.
        features: the same words, and its types -> evidence of each where an entity named beside has it.
        text: what stands for it before a sentence model: "name, description".
    """

    names: int
    words: dict[int, float]
    features: dict[int | str, float]
    text: str


class Evidence:
    """Names and entities as the linker weighs them (the formulas stand in `linking.Linker`), remembered.

    Args:
        knowledge_base: the entities.
        counts: how many texts have each of their words.
        popularity: weight of the popularity.
    """

    def __init__(self, knowledge_base: KnowledgeBase, counts: WordCounts, popularity: float) -> None:
        self._knowledge_base = knowledge_base
        self._counts = counts
        self._popularity = popularity
        self.name = lru_cache(maxsize=_KEPT)(self._look_up)
        self.profile = lru_cache(maxsize=_KEPT)(self._describe)

    def _look_up(self, text: str) -> Name:
        """The name `text`, which the knowledge base has."""
        aliases = self._knowledge_base.aliases
        rows, named = aliases.candidates(aliases.number(text))
        popularity = self._knowledge_base.popularity(rows).astype(np.float64)
        most_popular = np.sort(np.lexsort((rows, -popularity))[:MEANINGS])
        behind = np.log1p(popularity) - math.log1p(popularity.max())
        numbers = self._knowledge_base.word_numbers(text.split())
        rarest = float(self._counts.shares(numbers).min())
        found = tuple(rows[most_popular].tolist())
        specific = [
            math.log(((0.5 if preferred else 0.0) + 0.5 / self.profile(row).names) / rarest)
            for row, preferred in zip(found, named[most_popular].tolist(), strict=True)
        ]
        priors = np.array(specific) + self._popularity * behind[most_popular]
        return Name(text, found, tuple(priors.tolist()), frozenset(numbers))

    def _describe(self, row: int) -> Profile:
        """The entity at `row`."""
        entity = self._knowledge_base[row]
        names = {normalise(name) for name in (entity.name, *entity.aliases)} - {""}
        bag = self._knowledge_base.bag(row)
        evidence = np.log1p(1 / len(bag) / self._counts.shares(bag)).tolist()
        words = dict(zip(bag.tolist(), evidence, strict=True))
        types = dict.fromkeys(entity.types)
        features = {feature: self._shared(feature, len(of)) for of in (words, types) for feature in of}
        return Profile(len(names), words, features, label_text(entity.name, entity.description))

    def _shared(self, feature: int | str, among: int) -> float:
        """The evidence of a word or type, one of `among` that an entity has, in another entity."""
        common, sample = self._common
        return math.log1p(1 / among * (sample + 1) / (common[feature] + 1))

    @cached_property
    def _common(self) -> tuple[Counter[int | str], int]:
        """How many entities of a sample, evenly spread, have each word and each type; the sample's size."""
        step = -(-len(self._knowledge_base) // _SAMPLE)
        rows = range(0, len(self._knowledge_base), step)
        common: Counter[int | str] = Counter()
        for row in rows:
            common.update(self._knowledge_base.bag(row).tolist())
            common.update(set(self._knowledge_base[row].types))
        return common, len(rows)
