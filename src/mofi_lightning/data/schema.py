"""What one row of an Images-to-Entities data set holds, and how its integrity is checked.

A data set is a folder that only `data.writing` writes:

- `dataset.json`: `{"schema": 2, "rows": n, "fields": ["image", "text", "entity"], "fingerprint": "..."}`. The
  fingerprint is the BLAKE2b (16 bytes, hexadecimal) of the checksums of all rows in their order, each as a
  little-endian uint32: two data sets with the same fingerprint hold the same rows.
- `vocabulary.arrow`: the entities (see `data.vocabulary`); only where the fields include 'entity'.
- `shards/`: `index.json` and litdata chunks of records `{key: str, image: bytes, text: str, entities: int64
  array, scores: float32 array, checksum: int}`.

Rows without a kept entity stay in the set: they still have their text.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
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


def checksum(
    key: str, image: bytes | memoryview, text: str, entities: Sequence[int], scores: Sequence[float]
) -> int:
    """CRC-32 over every field of a row, with their lengths, so that no flipped byte passes unseen."""
    key_bytes, text_bytes = key.encode(), text.encode()
    head = struct.pack("<4q", len(key_bytes), len(image), len(text_bytes), len(entities))
    labels = struct.pack(f"<{len(entities)}q{len(scores)}f", *entities, *scores)
    crc = 0
    for part in (head, key_bytes, image, text_bytes, labels):
        crc = zlib.crc32(part, crc)
    return crc
