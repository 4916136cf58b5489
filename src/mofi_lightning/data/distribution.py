"""How often each whole number occurs among very many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bins(NamedTuple):
    """Counts of equally wide bins; the last one holds everything beyond it too if `more`."""

    edges: list[int]
    counts: list[int]
    more: bool


class Distribution:
    """Counts of whole numbers of at least 0: exact quantiles of more values than fit into memory."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, counts: Counter[int]) -> None:
        """Add how often each value occurs."""
        self._counts.update(counts)

    def __len__(self) -> int:
        return self._counts.total()

    @property
    def total(self) -> int:
        """The sum of all values."""
        return sum(value * count for value, count in self._counts.items())

    def share(self, value: int) -> float:
        """Share of `value` among all, 0..1; there must be some."""
        return self._counts[value] / len(self)

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The values below which these shares lie, as `numpy.quantile` has them; there must be some."""
        values, counts = self._sorted()
        places = np.asarray(shares) * (len(self) - 1)
        below = np.floor(places)
        ends = np.cumsum(counts)
        low, high = (values[np.searchsorted(ends, p, side="right")] for p in (below, np.ceil(places)))
        return [float(value) for value in low + (places - below) * (high - low)]

    def bins(self, most: int) -> Bins:
        """At most `most` + 1 bins of a round width that reach to the 99th percentile."""
        values, counts = self._sorted()
        low, top = int(values[0]), int(self.quantiles([0.99])[0])
        width = _round_up((top - low + 1) / most)
        first = low // width
        number = top // width - first + 1
        places = np.minimum(values // width - first, number - 1)
        binned = np.bincount(places, weights=counts, minlength=number).astype(np.int64)
        edges = [(first + place) * width for place in range(number + 1)]
        return Bins(edges, binned.tolist(), bool(values[-1] >= edges[-1]))

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        values = np.array(sorted(self._counts), dtype=np.int64)
        return values, np.array([self._counts[int(value)] for value in values], dtype=np.int64)


def _round_up(width: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `width`."""
    power = 1
    while True:
        for step in (power, 2 * power, 5 * power):
            if step >= width:
                return step
        power *= 10
