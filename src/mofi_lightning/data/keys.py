"""Whether a key comes twice, for more keys than fit into memory as texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


class SeenKeys:
    """The keys seen so far, by a 64-bit hash: 8 bytes a key.

    Hashes are held in sorted runs of growing size, merged like the digits of a binary counter, so that a
    billion keys are checked in thirty searches. (Two of a billion different keys share a hash in one of forty
    data sets, of ten million in one of 400,000.)
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, keys: Sequence[str]) -> str | None:
        """Add `keys`.

        Returns:
            The first of them that was there already, or that comes twice among them; None if there is none.
        """
        digests = b"".join(hashlib.blake2b(_encoded(key), digest_size=8).digest() for key in keys)
        hashes = np.frombuffer(digests, dtype=np.uint64)
        repeated = np.ones(len(hashes), dtype=bool)
        repeated[np.unique(hashes, return_index=True)[1]] = False
        for run in self._runs:
            places = np.searchsorted(run, hashes)
            repeated |= run[np.minimum(places, len(run) - 1)] == hashes
        if repeated.any():
            return keys[int(repeated.argmax())]
        if len(hashes):
            self._runs.append(np.sort(hashes))
        while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
            self._runs.append(np.sort(np.concatenate([self._runs.pop(), self._runs.pop()]), kind="stable"))
        return None


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
