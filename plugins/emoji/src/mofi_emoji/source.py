"""The emoji source: splits and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from random import Random
from typing import NamedTuple

import resvg_py
from PIL import Image

from mofi_emoji.alt_text import clean_alt_text, noisy_alt_text
from mofi_emoji.catalogue import Emoji, read_catalogue
from mofi_emoji.packages import STYLE_VERSIONS, default_cache, fetch
from mofi_lightning.sources.base import Entity, Pair, Source
from mofi_lightning.types import InputError

STYLES = tuple(STYLE_VERSIONS)

# fewer drawings do not make an entity (of four styles or less, all must have one)
_MIN_DRAWINGS = 4
# share of the seen entities that lend two drawings each to validation, and the drawings they must have
_VALIDATION_SHARE, _HELD_OUT, _VALIDATION_MIN_DRAWINGS = 0.15, 2, 5
# near-duplicates of each other: no fair test of unseen entities
_NEVER_UNSEEN = {"people & body", "symbols"}


class _Drawing(NamedTuple):
    emoji: Emoji
    style: str


class EmojiSource(Source):
    """Emoji in six drawing styles with noisy alt-texts, made of npm packages that are fetched once.

    An entity is an emoji that at least four styles have drawn. Three splits: `train` and `validation` show
    seen entities with the same noise (30 % of the texts name another entity, 40 % use tags instead of the
    name, 10 % name nothing); `test` shows unseen entities, which the knowledge base leaves out, with clean
    texts. The same seed gives the same bytes.

    Args:
        styles: drawing styles, of noto, noto-v1, twemoji, fluent-emoji-flat, fxemoji, emojione.
        unseen: number of entities that appear in `test` only.
        entities: number of entities in all, drawn at random; default: all there are.
        size: width and height of the images in pixels.
        seed: draws splits and noise.
        cache: folder of the npm packages; default: mofi_lightning/emoji in the user's cache folder.

    Raises:
        InputError: an argument is out of range, or the packages are neither cached nor to be had.
    """

    def __init__(
        self,
        styles: Sequence[str] = STYLES,
        unseen: int = 200,
        entities: int | None = None,
        size: int = 64,
        seed: int = 1,
        cache: Path | None = None,
    ) -> None:
        if unknown := [style for style in styles if style not in STYLES]:
            raise InputError(f"unknown drawing style {unknown[0]!r}; there are {', '.join(STYLES)}")
        if len(set(styles)) != len(styles) or len(styles) <= _HELD_OUT:
            raise InputError(f"styles {list(styles)} must be {_HELD_OUT + 1} or more different ones")
        if not 8 <= size <= 1024:
            raise InputError(f"size {size} is out of range; take 8 to 1024 pixels")
        self._styles = tuple(styles)
        self._unseen = unseen
        self._limit = entities
        self._size = size
        self._seed = seed
        self._cache = cache or default_cache()

    @property
    def splits(self) -> Sequence[str]:
        """Train and validation show seen entities, test unseen ones."""
        return ("train", "validation", "test")

    def entities(self) -> Iterator[Entity]:
        """The seen entities, in the order of Unicode; aliases are the tags."""
        return map(_entity, self._seen)

    def count(self, split: str) -> int:
        """Number of pairs of `split`."""
        return len(self._drawings[split])

    def pairs(self, split: str) -> Iterator[Pair]:
        """The pairs of `split`, in an order drawn at random."""
        for emoji, style in self._drawings[split]:
            key = f"{emoji.id[2:]}/{style}"
            # seeded by the pair, so that a text does not depend on what else is in the set
            random = Random(f"{self._seed}/{key}")
            if split == "test":
                text = clean_alt_text(emoji, random)
            else:
                text = noisy_alt_text(emoji, self._seen, random)
            yield Pair(key, self._rasterize(emoji.drawings[style]), text, _entity(emoji))

    @cached_property
    def _entities(self) -> list[Emoji]:
        enough = min(_MIN_DRAWINGS, len(self._styles))
        catalogue = read_catalogue(fetch(self._cache, self._styles), self._styles)
        found = [emoji for emoji in catalogue if len(emoji.drawings) >= enough]
        if self._limit is None:
            return found
        if not 0 < self._limit <= len(found):
            raise InputError(f"entities {self._limit} is out of range; these styles have 1 to {len(found)}")
        kept = {emoji.id for emoji in Random(f"{self._seed}/entities").sample(found, self._limit)}
        return [emoji for emoji in found if emoji.id in kept]

    @cached_property
    def _unseen_ids(self) -> set[str]:
        fit = [emoji for emoji in self._entities if emoji.group not in _NEVER_UNSEEN]
        if not 0 < self._unseen <= len(fit):
            raise InputError(f"unseen {self._unseen} is out of range; 1 to {len(fit)} entities can be unseen")
        return {emoji.id for emoji in Random(f"{self._seed}/unseen").sample(fit, self._unseen)}

    @cached_property
    def _seen(self) -> list[Emoji]:
        return [emoji for emoji in self._entities if emoji.id not in self._unseen_ids]

    @cached_property
    def _drawings(self) -> dict[str, list[_Drawing]]:
        random = Random(f"{self._seed}/validation")
        fit = [e for e in self._seen if len(e.drawings) >= min(_VALIDATION_MIN_DRAWINGS, len(self._styles))]
        lenders = random.sample(fit, min(len(fit), max(1, round(_VALIDATION_SHARE * len(self._seen)))))
        held_out = {(e.id, s) for e in lenders for s in random.sample(sorted(e.drawings), _HELD_OUT)}
        splits: dict[str, list[_Drawing]] = {split: [] for split in self.splits}
        for emoji in self._entities:
            for style in emoji.drawings:
                split = "validation" if (emoji.id, style) in held_out else "train"
                if emoji.id in self._unseen_ids:
                    split = "test"
                splits[split].append(_Drawing(emoji, style))
        for split, drawings in splits.items():
            Random(f"{self._seed}/order/{split}").shuffle(drawings)
        return splits

    def _rasterize(self, svg: str) -> bytes:
        # drawings have no text, so fonts are not looked for (it takes longer than drawing)
        png: bytes = resvg_py.svg_to_bytes(
            svg_string=svg, width=self._size, height=self._size, background="white", skip_system_fonts=True
        )
        opaque = BytesIO()
        Image.open(BytesIO(png)).convert("RGB").save(opaque, "PNG")
        return opaque.getvalue()


def _entity(emoji: Emoji) -> Entity:
    description = "; ".join(filter(None, (emoji.group, ", ".join(emoji.tags))))
    return Entity(emoji.id, emoji.name, emoji.tags, description)
