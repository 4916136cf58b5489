"""Which drawing shows which emoji: icon sets and names joined on the code point."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mofi_emoji.packages import NAMES_PACKAGE, style_package
from mofi_lightning.types import InputError

# groups of emojibase that are no entities: skin tones and hair, flags
_DROPPED_GROUPS = {"components", "flags"}
# icons whose name means another emoji, by style: the name that they should have, None for damaged ones
MISNAMED: dict[str, dict[str, str | None]] = {
    "fxemoji": {
        "bow": "ribbon",
        "bowing": "person bowing",
        "cat": "cat face",
        "catside": "cat",
        "dog": "dog face",
        "dogside": "dog",
        "down": "backhand index pointing down",
        "keyboard": "musical keyboard",
        "wiredkeyboard": "keyboard",
        "kiss": "face blowing a kiss",
        "mouse": "mouse face",
        "mouseside": "mouse",
        "pig": "pig face",
        "pigside": "pig",
        "pout": "person pouting",
        "pouting": "enraged face",
        "sunglasses": "smiling face with sunglasses",
        "tiger": "tiger face",
        "tigerside": "tiger",
        "tramcar": None,
        "wave": "water wave",
        "waving": "waving hand",
    }
}
_SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")


@dataclass(frozen=True)
class Emoji:
    """One emoji with its drawings.

    Attributes:
        id: code points, as in `U+1F436` or `U+1F426-200D-2B1B`.
        name: its label in emojibase (CLDR's short name).
        tags: its keywords there, without the name itself.
        group: its group there, for instance 'animals & nature'.
        drawings: style -> SVG document, on a square canvas.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    group: str
    drawings: dict[str, str] = field(default_factory=dict)


def read_catalogue(modules: Path, styles: Sequence[str]) -> list[Emoji]:
    """All emoji that are entities, in the order of Unicode, with their drawings in `styles`.

    Args:
        modules: the folder `node_modules` that holds the packages.
        styles: the drawing styles to read.

    Raises:
        InputError: a file of a package is missing or damaged.
    """
    names = modules / NAMES_PACKAGE / "en"
    groups = {g["order"]: g["message"] for g in read_json(names / "messages.json")["groups"]}
    emoji: dict[str, Emoji] = {}
    for record in sorted(read_json(names / "data.json"), key=lambda record: record.get("order", 0)):
        group = groups.get(record.get("group"))  # single regional indicators have none
        if group is None or group in _DROPPED_GROUPS:
            continue
        tags = tuple(tag for tag in record.get("tags", []) if tag != record["label"])
        emoji[_code(record["hexcode"])] = Emoji(f"U+{record['hexcode']}", record["label"], tags, group)

    icon_sets = {style: IconSet(modules / style_package(style), MISNAMED.get(style, {})) for style in styles}
    index = _name_index(names, emoji, icon_sets.values())
    for style, icons in icon_sets.items():
        for code, slug in icons.slugs(index).items():
            if code in emoji:
                emoji[code].drawings[style] = icons.svg(slug)
    return list(emoji.values())


class IconSet:
    """An icon set in Iconify's JSON format: bodies of SVG documents by slug, aliases, code points."""

    def __init__(self, package: Path, misnamed: dict[str, str | None]) -> None:
        self.misnamed = misnamed
        data = read_json(package / "icons.json")
        self.width, self.height = data.get("width", 16), data.get("height", 16)  # Iconify's defaults
        self.icons: dict[str, dict[str, Any]] = data["icons"]
        self.chars = {_code(char): slug for char, slug in read_json(package / "chars.json").items()}
        # an alias that is drawn another way (mirrored) is another emoji
        self.aliases: dict[str, list[str]] = defaultdict(list)
        for alias, entry in data.get("aliases", {}).items():
            if entry == {"parent": entry["parent"]}:
                self.aliases[entry["parent"]].append(alias)

    def slugs(self, index: dict[str, _Match]) -> dict[str, str]:
        """Code point -> slug: from the set itself, or through the names where it knows no code points."""
        if self.chars:
            return self.chars
        best: dict[str, tuple[_Match, str]] = {}
        for slug in self.icons:
            for name in (self.misnamed.get(slug, slug), *self.aliases[slug]):
                if name and (match := index.get(_squash(name))):
                    # of two icons that claim one code point, the one with the more trusted name has it
                    if match.code not in best or match < best[match.code][0]:
                        best[match.code] = (match, slug)
                    break
        return {code: slug for code, (_, slug) in best.items()}

    def svg(self, slug: str) -> str:
        """The drawing as a document on a square canvas, centred."""
        icon = self.icons[slug]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        side = max(width, height)
        box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side} {side}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}">{icon["body"]}</svg>'
        )


class _Match(NamedTuple):
    rank: int  # of the kind of name: 0 is the most trusted
    code: str


def _name_index(names: Path, emoji: dict[str, Emoji], icon_sets: Iterable[IconSet]) -> dict[str, _Match]:
    """Squashed name -> code point, from the most trusted kind of name that has it; no ambiguous names."""
    kinds: list[dict[str, set[str]]] = [defaultdict(set) for _ in range(5)]
    slugs, aliases, labels, unicode_names, shortcodes = kinds
    for icons in icon_sets:
        for code, slug in icons.chars.items():
            slugs[slug].add(code)
            for alias in icons.aliases[slug]:
                aliases[alias].add(code)
    for code, entry in emoji.items():
        labels[entry.name].add(code)
        if "-" not in code:
            unicode_names[unicodedata.name(chr(int(code, 16)), "")].add(code)
    for collection in _SHORTCODES:
        for code, found in read_json(names / "shortcodes" / f"{collection}.json").items():
            for shortcode in [found] if isinstance(found, str) else found:
                shortcodes[shortcode].add(_code(code))

    index: dict[str, _Match] = {}
    for rank, kind in enumerate(kinds):
        squashed: dict[str, set[str]] = defaultdict(set)
        for name, codes in kind.items():
            squashed[_squash(name)].update(codes & emoji.keys())
        for name, codes in squashed.items():
            if len(codes) == 1:
                index.setdefault(name, _Match(rank, *codes))
    return index


def _squash(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _code(hexcode: str) -> str:
    """Code points without variation selectors, which the packages treat differently."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def read_json(path: Path) -> Any:
    """The content of a JSON file of a package.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged; remove the cache it is in and run again") from error
