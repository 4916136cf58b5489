"""Counted randomness: what a row draws depends on where it is, not on what was drawn before."""

from __future__ import annotations

import hashlib
from random import Random


def row_generator(seed: int, pass_number: int, key: str) -> Random:
    """Generator of the row `key` in the given pass over its source.

    The same arguments give the same draws in any process, so a resumed run repeats them without saved states,
    and no global generator is touched.
    """
    digest = hashlib.blake2b(f"{seed}\0{pass_number}\0{key}".encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "little"))
