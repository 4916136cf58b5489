"""The source of flags: places with their true Wikidata ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path
from random import Random
from typing import NamedTuple

import resvg_py
from PIL import Image

from mofi_emoji.flags_catalogue import FLAG_VERSIONS, Place, read_places
from mofi_emoji.flags_text import noisy_flag_text
from mofi_emoji.packages import default_cache, fetch_packages
from mofi_lightning.sources.base import Entity, Pair, Source
from mofi_lightning.types import InputError

# flags that fewer styles have drawn are left out: no entity could be told by so few images
_MIN_DRAWINGS = 4


class _Drawing(NamedTuple):
    place: Place
    style: str


class FlagSource(Source):
    """Flags of countries and territories in seven drawing styles with noisy alt-texts and true Wikidata ids.

    One split, `train`. The texts use names that several places may share (Congo, Ireland, Virgin Islands);
    30 % of them name another place, 10 % name nothing. The knowledge base also holds places without a flag:
    islands, parts of continents. Some flags are the same (Norway, Svalbard): no image tells those apart. The
    same seed gives the same bytes.

    Args:
        size: width of the images in pixels; a flag of 4 by 3 is three quarters of it high.
        seed: draws texts and order.
        cache: folder of the npm packages; default: mofi_lightning/emoji in the user's cache folder.

    Raises:
        InputError: an argument is out of range, or the packages are neither cached nor to be had.
    """

    def __init__(self, size: int = 64, seed: int = 1, cache: Path | None = None) -> None:
        if not 8 <= size <= 1024:
            raise InputError(f"size {size} is out of range; take 8 to 1024 pixels")
        self._size = size
        self._seed = seed
        self._cache = cache or default_cache()

    def entities(self) -> Iterator[Entity]:
        """All places, with or without a flag; aliases are other names and codes."""
        return map(_entity, self._places)

    def count(self, split: str) -> int:
        """Number of drawings."""
        return len(self._drawings)

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs, in an order drawn at random."""
        for place, style in self._drawings:
            key = f"{place.code}/{style}"
            # seeded by the pair, so that a text does not depend on the order
            text = noisy_flag_text(place, self._shown, Random(f"{self._seed}/{key}"))
            yield Pair(key, self._rasterize(place.drawings[style]), text, _entity(place))

    @cached_property
    def _places(self) -> list[Place]:
        return read_places(fetch_packages(self._cache, FLAG_VERSIONS))

    @cached_property
    def _shown(self) -> list[Place]:
        return [place for place in self._places if len(place.drawings) >= _MIN_DRAWINGS]

    @cached_property
    def _drawings(self) -> list[_Drawing]:
        drawings = [_Drawing(place, style) for place in self._shown for style in place.drawings]
        Random(f"{self._seed}/order").shuffle(drawings)
        return drawings

    def _rasterize(self, svg: str) -> bytes:
        # drawings have no text, so fonts are not looked for (it takes longer than drawing)
        png: bytes = resvg_py.svg_to_bytes(
            svg_string=svg, width=self._size, background="white", skip_system_fonts=True
        )
        opaque = BytesIO()
        Image.open(BytesIO(png)).convert("RGB").save(opaque, "PNG")
        return opaque.getvalue()


def _entity(place: Place) -> Entity:
    return Entity(place.id, place.name, (*place.aliases, *place.codes), place.description)
