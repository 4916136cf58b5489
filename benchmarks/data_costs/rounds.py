"""Rates and times of things that are compared with each other."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping


def in_turn(measures: Mapping[str, Callable[[], float]], rounds: int, title: str) -> dict[str, list[float]]:
    """What each of `measures` returns in each round; all in every round, each in turn first.

    So a machine that is slow for a while is slow for all of them.
    """
    names = list(measures)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(measures[name]())
            print(f"{title}, round {turn + 1} of {rounds}: {name} {found[name][-1]:,.4g}", file=sys.stderr)
    for name, values in found.items():
        spread = f"{min(values):,.4g} .. {max(values):,.4g}"
        print(f"{title}: {name} {statistics.median(values):,.4g}, {spread}")
    return found
