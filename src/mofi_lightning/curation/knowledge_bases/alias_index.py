"""Which entities a name may mean: names in MARISA tries (Yata 2011), entities in arrays, all memory-mapped.

An index is a folder:

- `index.json`: number of parts, and the part of each bucket. A name is in the bucket that the CRC-32 of its
  first word gives, so a search knows the one part to look into; an index of few names has one part;
- `0/`, `1/`, ...: the parts. `names.trie` numbers the names from 0; `rows.npy` and `named.npy` hold their
  entities one name after the other, name i's from `offsets[i]` to `offsets[i + 1]` (`offsets.npy`).
"""

from __future__ import annotations

import json
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from marisa_trie import Trie

LONGEST_NAME = 250
"""Characters of the longest name that an index holds; Wikidata's own limit for labels and aliases."""

_FILE_NAME = "index.json"
_BUCKETS = 256
# (name, entity) in one part; building one takes some 120 bytes for each
_PART = 1 << 22
# (name, entity) in memory until they are written to their buckets
_BUFFER = 1 << 18

Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]


def new_trie(keys: Iterable[str] = ()) -> Trie:
    """A MARISA trie of `keys`.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from marisa_trie import Trie
    except ImportError as error:
        raise InputError(
            "curation needs marisa-trie; pip install 'mofi-lightning[curation]' brings it"
        ) from error
    return Trie(keys)


class AliasIndex:
    """Normalised names (`names.normalise`), each with the entities that it may mean.

    A name has a number, from 0; an entity is its row in the knowledge base.

    Args:
        folder: what `AliasIndexBuilder` wrote.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / _FILE_NAME).read_text())
        self._parts = [_Part.open(folder / str(part)) for part in range(about["parts"])]
        self._part_of_bucket: list[int] = about["part_of_bucket"]
        self._starts = list(accumulate((len(part.trie) for part in self._parts), initial=0))

    def __len__(self) -> int:
        """Number of names."""
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        """All names, in no order that means anything."""
        return (name[:-1] for part in self._parts for name in part.trie.iterkeys())

    def find(self, words: Sequence[str]) -> list[str]:
        """The names in a text: the longest from left to right, whole words only, none overlapping.

        Args:
            words: of the text (`names.words`).
        """
        found = []
        text = " ".join(words) + " "
        position, end = 0, len(text)
        prefixes = self._parts[0].trie.prefixes
        many = len(self._parts) > 1
        while position < end:
            if many:
                prefixes = self._parts[self._part(text[position : text.index(" ", position)])].trie.prefixes
            names = prefixes(text[position : position + LONGEST_NAME + 1])
            if names:
                name = names[-1]  # they come shortest first
                found.append(name[:-1])
                position += len(name)
            else:
                position = text.index(" ", position) + 1
        return found

    def number(self, name: str) -> int:
        """Number of a normalised name; -1 if no entity has it."""
        part = self._part(name.partition(" ")[0])
        number: int = self._parts[part].trie.get(f"{name} ", -1)
        return number if number < 0 else self._starts[part] + number

    def candidates(self, number: int) -> tuple[Rows, Mask]:
        """The rows of the entities that name `number` may mean, ascending, and whose preferred name it is."""
        part = bisect_right(self._starts, number) - 1
        _, offsets, rows, named = self._parts[part]
        local = number - self._starts[part]
        entities = slice(int(offsets[local]), int(offsets[local + 1]))
        return rows[entities], named[entities]

    def _part(self, first_word: str) -> int:
        return self._part_of_bucket[_bucket(first_word)] if len(self._parts) > 1 else 0


class AliasIndexBuilder:
    """Collects names and writes them as an `AliasIndex`; in bounded memory, however many they are.

    The names wait in bucket files beside the index. The same names in the same order make the same bytes.

    Args:
        folder: to write; made if it is not there.
        part: number of (name, entity) from which on a part is full.
    """

    def __init__(self, folder: Path, part: int = _PART) -> None:
        self._folder = folder
        self._part = part
        self._waiting = folder / "waiting"
        folder.mkdir(parents=True)
        self._names: list[list[str]] = [[] for _ in range(_BUCKETS)]
        self._meanings: list[list[int]] = [[] for _ in range(_BUCKETS)]
        self._buffered = 0
        self._counts = [0] * _BUCKETS

    def add(self, name: str, row: int, named: bool) -> None:
        """Entity `row` has the normalised name `name`; `named` if it is the preferred one.

        Said again, it changes nothing; one that was once preferred stays so. A name of more than
        `LONGEST_NAME` characters is left out: it stands in no caption.
        """
        if not 0 < len(name) <= LONGEST_NAME:
            return
        bucket = _bucket(name.partition(" ")[0])
        # the space behind every name makes a prefix of a text a prefix of whole words
        self._names[bucket].append(f"{name} \n")
        self._meanings[bucket].append(row << 1 | (not named))
        self._buffered += 1
        if self._buffered == _BUFFER:
            self._spill()

    def write(self) -> None:
        """Write the index."""
        if self._waiting.exists():  # otherwise the names never left the memory
            self._spill()
        else:
            self._counts = list(map(len, self._names))
        parts: list[list[int]] = [[]]
        size = 0
        for bucket, count in enumerate(self._counts):
            if parts[-1] and size + count > self._part:
                parts.append([])
                size = 0
            parts[-1].append(bucket)
            size += count
        for number, buckets in enumerate(parts):
            self._write_part(self._folder / str(number), buckets)
        part_of_bucket = [number for number, buckets in enumerate(parts) for _ in buckets]
        about = {"parts": len(parts), "part_of_bucket": part_of_bucket}
        (self._folder / _FILE_NAME).write_text(json.dumps(about))
        shutil.rmtree(self._waiting, ignore_errors=True)

    def _spill(self) -> None:
        self._waiting.mkdir(exist_ok=True)
        for bucket, (names, meanings) in enumerate(zip(self._names, self._meanings, strict=True)):
            if names:
                with self._names_file(bucket).open("a", encoding="utf-8", newline="\n") as file:
                    file.writelines(names)
                with self._meanings_file(bucket).open("ab") as binary:
                    np.array(meanings, dtype=np.int64).tofile(binary)
                self._counts[bucket] += len(names)
                names.clear()
                meanings.clear()
        self._buffered = 0

    def _write_part(self, folder: Path, buckets: Sequence[int]) -> None:
        folder.mkdir()
        used = [bucket for bucket in buckets if self._counts[bucket]]
        trie = new_trie(name for bucket in used for name in self._waiting_names(bucket))
        trie.save(str(folder / "names.trie"))
        # (number of the name, row, not preferred) in 64 bits: sorted, the first of each (number, row) counts
        key_id = trie.key_id
        meanings = [
            np.fromiter(map(key_id, self._waiting_names(bucket)), np.int64, self._counts[bucket]) << 32
            | self._waiting_meanings(bucket)
            for bucket in used
        ]
        packed = np.sort(np.concatenate(meanings)) if meanings else np.zeros(0, np.int64)
        first = np.ones(len(packed), dtype=np.bool_)
        np.not_equal(packed[1:] >> 1, packed[:-1] >> 1, out=first[1:])
        packed = packed[first]
        counts = np.bincount(packed >> 32, minlength=len(trie))
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        np.save(folder / "rows.npy", (packed >> 1 & 0x7FFFFFFF).astype(np.int32))
        np.save(folder / "named.npy", packed & 1 == 0)

    def _waiting_names(self, bucket: int) -> Iterator[str]:
        if not self._waiting.exists():
            yield from (line[:-1] for line in self._names[bucket])
            return
        with self._names_file(bucket).open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line[:-1]

    def _waiting_meanings(self, bucket: int) -> NDArray[np.int64]:
        if not self._waiting.exists():
            return np.array(self._meanings[bucket], dtype=np.int64)
        return np.fromfile(self._meanings_file(bucket), np.int64)

    def _names_file(self, bucket: int) -> Path:
        return self._waiting / f"{bucket}.txt"

    def _meanings_file(self, bucket: int) -> Path:
        return self._waiting / f"{bucket}.bin"


class _Part(NamedTuple):
    trie: Trie
    offsets: NDArray[np.int64]
    rows: Rows
    named: Mask

    @classmethod
    def open(cls, folder: Path) -> _Part:
        # as plain arrays: slices of a numpy.memmap are ten times slower
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("offsets", "rows", "named"))
        return cls(new_trie().mmap(str(folder / "names.trie")), *(array.view(np.ndarray) for array in arrays))


def _bucket(first_word: str) -> int:
    return crc32(first_word.encode()) % _BUCKETS
