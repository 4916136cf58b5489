"""What one row of an Images-to-Entities data set holds, and how its integrity is checked.

A data set is a folder that only `data.writing` writes:

- `dataset.json`: `{"schema": 2, "rows": n, "fields": ["image", "text", "entity"], "fingerprint": "..."}`. The
  fingerprint is the BLAKE2b (16 bytes, hexadecimal) of the checksums of all rows in their order, each as a
  little-endian uint32, and of `vocabulary.arrow`: two data sets with the same fingerprint hold the same rows
  in the same chunks, and the same entities.
- `vocabulary.arrow`: the entities (see `data.vocabulary`); only where the fields include 'entity'.
- `shards/`: `index.json` and litdata chunks `chunk-000000.bin` of records `{key: str, image: bytes,
  text: str, entities: int64 array, scores: float32 array, checksum: int}`. The checksum covers the place of
  the row too: the number in the name of its chunk, and its own within the chunk.

Rows without a kept entity stay in the set: they still have their text.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

SCHEMA_VERSION = 2


class Row(NamedTuple):
    """One image with its alt-text and the entities it was found to show.

    Attributes:
        key: unique within the data set.
        image: the encoded file, as found.
        text: the alt-text, possibly empty.
        entities: class ids, row numbers of the vocabulary; empty where no entity was kept.
        scores: of the entities, in the same order; kept so that a later filter needs no second linking.
    """

    key: str
    image: bytes
    text: str
    entities: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()


def checksum(row: Row, chunk: int, place: int) -> int:
    """CRC-32 over every field of a row, with their lengths, and over where it stands.

    No flipped byte passes unseen, nor a chunk or a row in the place of another.

    Args:
        row: the row.
        chunk: number of its chunk.
        place: number of the row within the chunk.
    """
    key, image, text, entities, scores = row
    key_bytes, text_bytes = key.encode(), text.encode()
    head = struct.pack("<6q", chunk, place, len(key_bytes), len(image), len(text_bytes), len(entities))
    labels = struct.pack(f"<{len(entities)}q{len(scores)}f", *entities, *scores)
    crc = 0
    for part in (head, key_bytes, image, text_bytes, labels):
        crc = zlib.crc32(part, crc)
    return crc


class Fingerprint:
    """What tells a data set from another one."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, checksums: bytes) -> None:
        """Add the checksums of the next rows, each a little-endian uint32."""
        self._hash.update(checksums)

    def text(self, vocabulary: Path | None) -> str:
        """The fingerprint, once all rows are added.

        Args:
            vocabulary: the file of the entities, if there are any.
        """
        if vocabulary is not None:
            with vocabulary.open("rb") as file:
                while block := file.read(1 << 20):
                    self._hash.update(block)
        return self._hash.hexdigest()
