"""Times of computations that are compared with each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; all calls in every round, in turn first, after one to warm up.

    So a machine that is slow for a while is slow for all of them.
    """
    names = list(calls)
    for name in names:
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(ours: list[float], peer: list[float]) -> float:
    """Median over the rounds of ours to peer."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))
