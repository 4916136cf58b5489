"""The different words of every entity, as numbers, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterable, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.knowledge_bases.external_sort import ArrayFile, Buckets, hash_of, mapped

Numbers = NDArray[np.int32]

# words that wait in memory before they are written
_WAITING = 1 << 18


class WordBags:
    """The words of entities, each once, as numbers from 0.

    A word's number is the rank of its hash (`external_sort.hash_of`), so no word is stored: `words.npy` has
    the hashes, `numbers.npy` the bags one after the other, `offsets.npy` where each begins.
    """

    def __init__(self, folder: Path) -> None:
        self._hashes, self._numbers, self._offsets = (
            mapped(folder / f"{name}.npy") for name in ("words", "numbers", "offsets")
        )

    @property
    def word_count(self) -> int:
        """Number of different words of all bags."""
        return len(self._hashes)

    def word_numbers(self, words: Iterable[str]) -> list[int]:
        """The number of each of `words`; -1 for a word of no bag."""
        wanted = np.array([hash_of(word) for word in words], dtype=np.uint64)
        if not len(self._hashes):
            return [-1] * len(wanted)
        found = np.searchsorted(self._hashes, wanted)
        known = self._hashes.take(found, mode="clip") == wanted
        numbers: list[int] = np.where(known, found, -1).tolist()
        return numbers

    def bag(self, row: int) -> Numbers:
        """The numbers of the words of bag `row`, ascending, each once."""
        numbers: Numbers = self._numbers[int(self._offsets[row]) : int(self._offsets[row + 1])]
        return numbers


class WordBagsBuilder:
    """Writes the bags of entities as `WordBags`, in bounded memory.

    Args:
        folder: to make.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._words = Buckets(folder / "buckets", columns=1, distinct=True)
        self._spool = open(folder / "spool", "w+b")  # noqa: SIM115
        self._offsets = ArrayFile(folder / "offsets.npy", np.int64)
        self._offsets.append(np.zeros(1))
        self._written = 0
        self._hashes: list[int] = []
        self._ends: list[int] = []

    def add(self, words: Set[str]) -> None:
        """Add the bag of the next entity."""
        self._hashes.extend(sorted(map(hash_of, words)))
        self._ends.append(self._written + len(self._hashes))
        if len(self._hashes) >= _WAITING:
            self._spill()

    def write(self) -> None:
        """Write what has been added; nothing can be added any more."""
        self._spill()
        with self._offsets:
            pass
        with ArrayFile(self._folder / "words.npy", np.uint64) as words:
            for hashes in self._words.sorted():
                words.append(hashes[:, 0])
        known = mapped(self._folder / "words.npy")
        self._spool.seek(0)
        # hashes ascend within a bag, and so do their ranks
        with self._spool, ArrayFile(self._folder / "numbers.npy", np.int32) as numbers:
            while len(hashes := np.frombuffer(self._spool.read(8 * _WAITING), dtype="<u8")):
                numbers.append(np.searchsorted(known, hashes))
        (self._folder / "spool").unlink()

    def _spill(self) -> None:
        hashes = np.array(self._hashes, dtype="<u8")
        self._spool.write(hashes.data)
        self._words.add(np.unique(hashes)[:, None])
        self._offsets.append(np.array(self._ends, dtype=np.int64))
        self._written += len(hashes)
        self._hashes, self._ends = [], []
