"""How common the words of a knowledge base are in the texts to be linked."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import words
from mofi_lightning.types import InputError

Counts = NDArray[np.int64]

# texts whose words are looked up together: most are repeats, and few enough to hold
_BATCH = 16_384
# what numpy raises where a file is missing or damaged: any of its bytes may be wrong
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True, eq=False)
class WordCounts:
    """Counts of words over texts; counts of parts of a corpus add up to the counts of the whole.

    Attributes:
        counts: int64 `[knowledge_base.word_count]`, the number of texts that have each word.
        texts: number of texts.
    """

    counts: Counts
    texts: int

    @classmethod
    def count(cls, texts: Iterable[str], knowledge_base: KnowledgeBase) -> WordCounts:
        """Count the words of `knowledge_base` in `texts`, each once a text."""
        counts = np.zeros(knowledge_base.word_count, dtype=np.int64)
        total = 0
        stream = iter(texts)
        while batch := list(islice(stream, _BATCH)):
            found: Counter[str] = Counter()
            for text in batch:
                found.update(set(words(text)))
            numbers = np.array(knowledge_base.word_numbers(found), dtype=np.int64)
            known = numbers >= 0
            counts[numbers[known]] += np.fromiter(found.values(), np.int64, len(found))[known]
            total += len(batch)
        return cls(counts, total)

    def __add__(self, other: WordCounts) -> WordCounts:
        """The counts over the texts of both.

        Raises:
            InputError: they count the words of different knowledge bases.
        """
        if len(self.counts) != len(other.counts):
            raise InputError(
                f"word counts of {len(self.counts):,} and of {len(other.counts):,} words do not add up; "
                "count all texts with one knowledge base"
            )
        return WordCounts(self.counts + other.counts, self.texts + other.texts)

    def shares(self, numbers: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
        """The share of texts that have each of the words `numbers`, above 0; -1 is a word never seen.

        One more text, which has every word, keeps the shares of unseen words above 0.
        """
        known = np.asarray(numbers, dtype=np.int64)
        return (np.where(known >= 0, self.counts[known], 0) + 1) / (self.texts + 1)

    def save(self, path: Path) -> None:
        """Write the counts to `path`, which appears whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, counts=self.counts, texts=np.array(self.texts))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> WordCounts:
        """Read what `save` wrote.

        Raises:
            InputError: `path` is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["counts"], int(file["texts"]))
        except _DAMAGE as error:
            raise InputError(f"word counts {path} are missing or damaged; count the texts anew") from error
