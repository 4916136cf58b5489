"""Alt-texts of flags, with the noise of `alt_text`, by names that several places may share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mofi_emoji.alt_text import or_another, or_nothing
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
    named = or_another(shown, places, random)
    text = random.choice(TEMPLATES).format(_name(named, random))
    context = [about for about in (named.region, named.capital) if about]
    if random.random() < CONTEXT and context:
        text = f"{text}, {random.choice(context)}"
    return or_nothing(text, random)


def _name(place: Place, random: Random) -> str:
    kind = random.random()
    if kind < ALIAS and place.aliases:
        return random.choice(place.aliases)
    if ALIAS <= kind < ALIAS + CODE and place.codes:
        return random.choice(place.codes)
    return place.name
