"""A reader of a knowledge base, and the record of what it had to leave out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from mofi_lightning.sources.base import Entity

_MOST_EXAMPLES = 20
_MOST_CHARACTERS = 120


class Faults:
    """What was left out, and why.

    Attributes:
        counts: how often each reason occurred.
        examples: the first 20 that say where, such as `line 17: no JSON (Expecting value: column 3)`.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def add(self, reason: str, where: str = "", detail: str = "") -> None:
        """Count `reason`; it becomes an example if it says `where`, such as `line 17`."""
        self.counts[reason] += 1
        if where and len(self.examples) < _MOST_EXAMPLES:
            self.examples.append(f"{where}: {reason}" + (f" ({shown(detail)})" if detail else ""))

    def update(self, others: Faults) -> None:
        """Add what `others` have counted later on."""
        self.counts.update(others.counts)
        self.examples.extend(others.examples[: _MOST_EXAMPLES - len(self.examples)])

    def take(self) -> Faults:
        """All that has been counted; what comes later is counted from 0."""
        taken = Faults()
        taken.update(self)
        self.counts.clear()
        self.examples.clear()
        return taken


def shown(text: str) -> str:
    """`text` as a message can hold it: one printable line, cut after 120 characters."""
    cut = text[:_MOST_CHARACTERS]
    line = "".join(character if character.isprintable() else "\ufffd" for character in cut)
    return line if len(text) == len(cut) else f"{line}..."


class KnowledgeBaseReader(ABC):
    """Base class of readers: constructor arguments are the command line of `mofi kb build NAME`.

    A reader streams: it holds no more than one entity in memory where its format allows it. A file that is
    not what it should be raises `InputError`; a single entity that cannot be used is left out and counted.
    """

    @cached_property
    def faults(self) -> Faults:
        """What `entities` has left out so far."""
        return Faults()

    @abstractmethod
    def entities(self) -> Iterator[Entity]:
        """The entities, in the order of the file; read once."""

    def count(self) -> int | None:
        """Number of entities, where it is known beforehand (for progress bars)."""
        return None
