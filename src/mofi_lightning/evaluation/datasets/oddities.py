"""What is odd about the classes of a data set, in words."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

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


def contradictions(files: Sequence[Path], entities: Sequence[str]) -> tuple[str, ...]:
    """A line on images of which another class has a copy, byte for byte; none where there is none.

    Args:
        files: of the images; only those that have the size of another one are read.
        entities: what each shows.
    """
    of_size: dict[int, list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        if file.is_file():  # what has vanished is told when it is embedded
            of_size[file.stat().st_size].append(row)
    of_content: dict[bytes, list[int]] = defaultdict(list)
    for rows in of_size.values():
        if len({entities[row] for row in rows}) > 1:
            for row in rows:
                of_content[_content(files[row])].append(row)
    copied = [
        (min(rows), sorted({entities[row] for row in rows}))
        for rows in of_content.values()
        if len({entities[row] for row in rows}) > 1
    ]
    if not copied:
        return ()
    first, classes = min(copied)
    are = "image is" if len(copied) == 1 else "images are"
    example = files[first]
    return (f"{len(copied)} {are} in two classes at once: {example.name} ({listed(classes)})",)


def _content(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
