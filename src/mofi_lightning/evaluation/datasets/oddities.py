"""What is odd about the classes of a data set, in words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mofi_lightning.evaluation.datasets.listing import listed


def class_oddities(entities: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """Classes without images, with one, and classes of one name, a line each.

    Args:
        entities: what each image shows.
        names: of all classes, those without images too.

    Example:
        >>> notes = class_oddities(["a", "a", "b"], {"a": "crane", "b": "crane", "c": "owl"})
        >>> for note in notes:
        ...     print(note)
        1 of 3 classes has no image and is a candidate only: c
        1 of 3 classes has one image: b
        2 classes are called 'crane' (a, b); a text cannot tell them apart
    """
    counts = Counter(entities)
    total = len({*names, *counts})
    notes = []
    empty = sorted(names.keys() - counts.keys())
    if empty:
        be = "has no image and is a candidate" if len(empty) == 1 else "have no image and are candidates"
        notes.append(f"{len(empty)} of {total} classes {be} only: {listed(empty)}")
    lonely = sorted(entity for entity, count in counts.items() if count == 1)
    if lonely:
        have = "has" if len(lonely) == 1 else "have"
        notes.append(f"{len(lonely)} of {total} classes {have} one image: {listed(lonely)}")
    called = defaultdict(list)
    for entity, name in sorted(names.items()):
        called[name].append(entity)
    for name, alike in called.items():
        if len(alike) > 1:
            notes.append(
                f"{len(alike)} classes are called {name!r} ({listed(alike)}); a text cannot tell them apart"
            )
    return tuple(notes)
