"""Alt-texts as the web writes them: mostly about the image, often about another one, sometimes about none."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from mofi_emoji.catalogue import Emoji

T = TypeVar("T")

TEMPLATES = (
    "{}",
    "a picture of {}",
    "{} icon",
    "cute {} sticker",
    "drawing of {} on white background",
    "{} - free clip art",
)
GENERIC = ("click here to download", "image", "untitled", "view full size", "stock illustration")

WRONG = 0.30  # share of the pairs that name another entity
TAGS = 0.40  # share of the texts that use tags instead of the name
# shares of the pairs whose text names nothing at all
GENERIC_SHARE, FILE_NAME_SHARE, EMPTY_SHARE = 0.05, 0.03, 0.02


def noisy_alt_text(drawn: Emoji, entities: Sequence[Emoji], random: Random) -> str:
    """A text for a drawing of `drawn`; a wrong one names another of `entities`, drawn uniformly."""
    named = or_another(drawn, entities, random)
    text = named.name
    if random.random() < TAGS and named.tags:
        text = ", ".join(random.sample(named.tags, min(2, len(named.tags))))
    text = random.choice(TEMPLATES).format(text)
    return or_nothing(text, random)


def or_another(drawn: T, entities: Sequence[T], random: Random) -> T:
    """`drawn`, or for a wrong text another one of `entities`."""
    named = drawn
    if random.random() < WRONG and len(entities) > 1:
        while named is drawn:
            named = random.choice(entities)
    return named


def or_nothing(text: str, random: Random) -> str:
    """`text`, or one that names nothing: generic words, the name of a file, or none at all."""
    kind = random.random()
    if kind < GENERIC_SHARE:
        return random.choice(GENERIC)
    if kind < GENERIC_SHARE + FILE_NAME_SHARE:
        return f"IMG_{random.randrange(10_000):04d}.png"
    if kind < GENERIC_SHARE + FILE_NAME_SHARE + EMPTY_SHARE:
        return ""
    return text


def clean_alt_text(drawn: Emoji, random: Random) -> str:
    """A text that names `drawn`, worded by one of the templates."""
    return random.choice(TEMPLATES).format(drawn.name)
