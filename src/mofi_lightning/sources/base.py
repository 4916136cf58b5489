"""A source: where noisy image + alt-text pairs come from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SURROGATES = re.compile("[\ud800-\udfff]")


class Entity(NamedTuple):
    """Something that images show: a person, a place, a product, a species.

    Attributes:
        id: unique within the knowledge base.
        name: the preferred name.
        aliases: other names.
        description: one line of text, which tells it from others of the same name.
        popularity: how often it is meant, in any unit (Wikidata: number of sitelinks); 0 where unknown.
        types: ids of what it is an instance of.
    """

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    popularity: float = 0.0
    types: tuple[str, ...] = ()


class Pair(NamedTuple):
    """One image with its alt-text.

    Attributes:
        key: unique within the source.
        image: the encoded file (JPEG, PNG, WebP, ...), as found.
        text: the alt-text, possibly empty.
        entity: what the image really shows, if the source knows; seen by measurement only, never by curation
            or training.
    """

    key: str
    image: bytes
    text: str
    entity: Entity | None = None


class Source(ABC):
    """Base class of sources: constructor arguments are the command line of `mofi pairs NAME`.

    A source streams; it never holds its images in memory. Bad input raises `InputError`.
    """

    @property
    def splits(self) -> Sequence[str]:
        """Names of the source's splits, in the order they are written."""
        return ("train",)

    @abstractmethod
    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of `split`."""

    def entities(self) -> Iterator[Entity]:
        """The knowledge base that comes with the source; empty by default.

        Entities that serve to measure what training has never seen are left out of it.
        """
        return iter(())

    def count(self, split: str) -> int | None:
        """Number of pairs of `split`, where it is known beforehand (for progress bars)."""
        return None


def well_formed(text: str) -> str:
    """`text` with U+FFFD in place of lone surrogates, which JSON and file names can hold, UTF-8 cannot."""
    return _SURROGATES.sub("\ufffd", text)
