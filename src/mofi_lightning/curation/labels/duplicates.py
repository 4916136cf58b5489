"""Near-duplicates among many hashes, without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.labels.selection import Mask

MOST_DISTANCE = 3

Hashes = NDArray[np.uint64]

_ROW_BITS = np.uint64(32)
_LOW = np.uint64((1 << 32) - 1)
_PART = 1 << 20


def duplicates(hashes: Hashes, distance: int) -> Mask:
    """Mark the hashes that lie within `distance` bits of an earlier one that is not marked itself.

    So the first of each group stays, and those that stay differ pairwise in more than `distance` bits. Equal
    hashes are found by sorting. For the others the 64 bits are cut into 2 `distance` bands: hashes within the
    distance agree in at least half of them, so sorting by every half of the bands (2, 6 or 20 of them, of 32
    bits each) brings such hashes together. A sort a half: 10 million hashes take seconds, and the time grows
    little faster than their number unless very many differ but share half their bits.

    Args:
        hashes: uint64 `[n]`, at most 2^32; 8 bytes each, and some 30 more while they are sorted.
        distance: 0 to 3.

    Returns:
        bool `[n]`, True for a duplicate.

    Raises:
        ValueError: the distance or the number of hashes is out of range.
    """
    if not 0 <= distance <= MOST_DISTANCE or len(hashes) > 1 << 32:
        raise ValueError(f"distance {distance} of {len(hashes):,} hashes: at most {MOST_DISTANCE} of 2^32")
    first = _first(hashes)
    marked = ~first
    if distance:
        # a copy fares as its first occurrence does: it lies near the same hashes, or near it
        marked[first] = _near(hashes[first], distance)
    return marked


def _first(hashes: Hashes) -> Mask:
    """Which hashes occur for the first time."""
    order = np.argsort(hashes, kind="stable")
    first = np.zeros(len(hashes), dtype=bool)
    first[order[:1]] = True
    for part in _parts(len(hashes) - 1):
        here, before = order[part.start + 1 : part.stop + 1], order[part]
        first[here[hashes[here] != hashes[before]]] = True
    return first


def _parts(count: int) -> Iterator[slice]:
    """`count` rows in parts, so that what is computed of them never is as large as the hashes."""
    for start in range(0, count, _PART):
        yield slice(start, min(count, start + _PART))


def _near(hashes: Hashes, distance: int) -> Mask:
    """`duplicates` of hashes that all differ."""
    pairs = _near_pairs(hashes, distance, limit=4 * len(hashes) + (1 << 20))
    if pairs is not None:
        return _later_of(pairs, len(hashes))
    # a crowd of similar hashes: without the marked ones of the first half there are fewer pairs
    half = len(hashes) // 2
    marked = np.zeros(len(hashes), dtype=bool)
    marked[:half] = _near(hashes[:half], distance)
    marked[half:] = _near_any(hashes[half:], hashes[:half][~marked[:half]], distance)
    left = half + np.flatnonzero(~marked[half:])
    marked[left] = _near(hashes[left], distance)
    return marked


def _near_pairs(hashes: Hashes, distance: int, limit: int) -> NDArray[np.uint64] | None:
    """Pairs within the distance, each as (later row, earlier row) in one integer, ascending.

    None if the halves of the bands bring together more than `limit` pairs, near or not.
    """
    found = [np.zeros(0, dtype=np.uint64)]
    for ordered in _sorted_keys(hashes, distance):
        # neighbours in the order, then those with one between them, ... of the same key
        same = [_same_as_next(ordered, part) for part in _parts(len(ordered) - 1)]
        place, step = np.concatenate([np.zeros(0, dtype=np.int64), *same]), 1
        while len(place):
            limit -= len(place)
            if limit < 0:
                return None
            earlier, later = ordered[place] & _LOW, ordered[place + step] & _LOW
            near = np.bitwise_count(hashes[earlier] ^ hashes[later]) <= distance
            found.append(later[near] << _ROW_BITS | earlier[near])
            step += 1
            place = place[: np.searchsorted(place, len(ordered) - step)]
            place = place[ordered[place] >> _ROW_BITS == ordered[place + step] >> _ROW_BITS]
    return np.unique(np.concatenate(found))


def _same_as_next(ordered: Hashes, part: slice) -> NDArray[np.int64]:
    """Where in `part` a key is that of the next row."""
    here, following = ordered[part], ordered[part.start + 1 : part.stop + 1]
    return part.start + np.flatnonzero(here >> _ROW_BITS == following >> _ROW_BITS)


def _later_of(pairs: NDArray[np.uint64], count: int) -> Mask:
    """Which of `count` rows are the later of a pair whose earlier row is not marked."""
    marked = bytearray(count)
    for part in _parts(len(pairs)):
        later_rows, earlier_rows = pairs[part] >> _ROW_BITS, pairs[part] & _LOW
        for later, earlier in zip(later_rows.tolist(), earlier_rows.tolist(), strict=True):
            if not marked[earlier]:  # final, because the pairs are ordered by their later row
                marked[later] = True
    return np.frombuffer(marked, dtype=bool)


def _near_any(hashes: Hashes, others: Hashes, distance: int) -> Mask:
    """Which of `hashes` `[n]` lie within the distance of one of `others`."""
    near = np.zeros(len(hashes), dtype=bool)
    for ordered, ordered_others in zip(
        _sorted_keys(hashes, distance), _sorted_keys(others, distance), strict=True
    ):
        rows, keys = ordered & _LOW, ordered >> _ROW_BITS
        place = np.searchsorted(ordered_others, keys << _ROW_BITS)
        while len(rows):
            ahead = (place < len(others)) & ~near[rows]
            ahead[ahead] = ordered_others[place[ahead]] >> _ROW_BITS == keys[ahead]
            rows, keys, place = rows[ahead], keys[ahead], place[ahead]
            other = others[ordered_others[place] & _LOW]
            near[rows[np.bitwise_count(hashes[rows] ^ other) <= distance]] = True
            place = place + 1
    return near


def _sorted_keys(hashes: Hashes, distance: int) -> Iterator[Hashes]:
    """For every half of the bands: 32 bits of the half and the row in one integer, ascending, `[n]`."""
    edges = np.linspace(0, 64, 2 * distance + 1).round().astype(np.uint64)
    for half in combinations(zip(edges[:-1], np.diff(edges), strict=True), distance):
        keys = np.empty(len(hashes), dtype=np.uint64)
        for part in _parts(len(hashes)):
            key = np.zeros(part.stop - part.start, dtype=np.uint64)
            for start, width in half:
                key = key << width | (hashes[part] >> start & (np.uint64(1) << width) - np.uint64(1))
            # of 33 bits the first is lost, which brings more together than need be, but never fewer
            keys[part] = key << _ROW_BITS | np.arange(part.start, part.stop, dtype=np.uint64)
        keys.sort()
        yield keys
