"""Alt-texts of flags, with the noise of `alt_text`, by names that several places may share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mofi_emoji.alt_text import EMPTY_SHARE, FILE_NAME_SHARE, GENERIC, GENERIC_SHARE, WRONG
from mofi_emoji.flags_catalogue import Place

TEMPLATES = (
    "{}",
    "flag of {}",
    "{} flag",
    "{} national flag",
    "{} flag icon",
    "waving flag of {} on white background",
    "{} flag - free vector",
)
# shares of the texts that use another name, or a code, instead of the name
ALIAS, CODE = 0.30, 0.10
CONTEXT = 0.40  # share of the texts that also say where the place is, or its capital


def noisy_flag_text(shown: Place, places: Sequence[Place], random: Random) -> str:
    """A text for a flag of `shown`; a wrong one is about another of `places`, drawn uniformly."""
    named = shown
    if random.random() < WRONG and len(places) > 1:
        while named is shown:
            named = random.choice(places)
    text = random.choice(TEMPLATES).format(_name(named, random))
    context = [about for about in (named.region, named.capital) if about]
    if random.random() < CONTEXT and context:
        text = f"{text}, {random.choice(context)}"

    kind = random.random()
    if kind < GENERIC_SHARE:
        return random.choice(GENERIC)
    if kind < GENERIC_SHARE + FILE_NAME_SHARE:
        return f"IMG_{random.randrange(10_000):04d}.png"
    if kind < GENERIC_SHARE + FILE_NAME_SHARE + EMPTY_SHARE:
        return ""
    return text


def _name(place: Place, random: Random) -> str:
    kind = random.random()
    if kind < ALIAS and place.aliases:
        return random.choice(place.aliases)
    if ALIAS <= kind < ALIAS + CODE and place.codes:
        return random.choice(place.codes)
    return place.name
