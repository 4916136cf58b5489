"""The places of the world, their Wikidata ids, names and flags: country-coder joined with sets of flags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofi_emoji.catalogue import read_json
from mofi_emoji.flags_drawings import DRAWING_VERSIONS, FLAGS_PACKAGE, FlagDrawings

PLACES_PACKAGE = "@rapideditor/country-coder"
FLAG_VERSIONS = {PLACES_PACKAGE: "5.6.1", **DRAWING_VERSIONS}

# what people leave out of a name: Republic of Cyprus, The Gambia, North Korea, Equatorial Guinea
_LEFT_OUT = re.compile(
    r"(The|(Kingdom|State|Bailiwick|Federated States|(Democratic |People's )?Republic) of( the)?"
    r"|North(ern)?|South(ern)?|East(ern)?|West(ern)?|Equatorial|Papua New|Caribbean|British|American|French"
    r"|United States) (?=[A-Z])"
)
_LEFT_OUT_BEHIND = re.compile(r" \(.*\)| of America$")
_NO_NAMES = {"Island", "Bank", "Africa"}  # left of North Island, West Bank, South Africa
_REGIONS = ("intermediateRegion", "subregion", "region")  # levels of country-coder, the smallest first
_KINDS = {
    "world": "all countries",
    "region": "continent",
    "subregion": "part of a continent",
    "intermediateRegion": "part of a continent",
    "union": "union of countries",
    "subunion": "part of a union of countries",
    "unitedNations": "union of countries",
    "subcountryGroup": "group of territories",
    "sharedLandform": "islands or peninsula",
}

Properties = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """A country, a territory, a part of the world or a group of them.

    Attributes:
        id: its Wikidata id.
        name: its English name.
        aliases: other names, among them short ones that other places may have too.
        codes: of ISO 3166 and similar ones.
        kind: for instance "country" or "territory of France".
        region: the part of the world it lies in; empty where unknown.
        capital: empty where unknown.
        code: what its flag is called in the sets of flags; empty if it has none.
        drawings: style -> SVG document of its flag.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    codes: tuple[str, ...]
    kind: str
    region: str
    capital: str
    code: str
    drawings: dict[str, str]

    @property
    def description(self) -> str:
        """For instance "country in Western Asia; capital Tbilisi"."""
        place = f"{self.kind} in {self.region}" if self.region else self.kind
        return f"{place}; capital {self.capital}" if self.capital else place


def read_places(modules: Path) -> list[Place]:
    """All places, in the order of country-coder, with the drawings of their flags.

    Args:
        modules: the folder `node_modules` that holds the packages of `FLAG_VERSIONS`.

    Raises:
        InputError: a file of a package is missing or damaged.
    """
    borders = read_json(modules / PLACES_PACKAGE / "src" / "data" / "borders.json")
    features: list[Properties] = [feature["properties"] for feature in borders["features"]]
    flags: dict[str, Properties] = {f["code"]: f for f in read_json(modules / FLAGS_PACKAGE / "country.json")}
    drawings = FlagDrawings(modules)
    countries = {f["iso1A2"]: f for f in features if f.get("iso1A2")}
    regions = {f.get("m49") or f["wikidata"]: f for f in features if f.get("level") in _REGIONS}
    # country-coder has Denmark within a Kingdom of Denmark, which has the code; its flag is called Denmark's
    namesakes: dict[str, str] = {
        feature["country"].lower(): feature["wikidata"]
        for feature in features
        if feature["nameEn"] == flags.get(feature.get("country", "").lower(), {}).get("name")
    }
    places = []
    for feature in features:
        listed = feature.get("aliases") or []
        codes = [feature.get("iso1A2"), feature.get("iso1A3"), *(a for a in listed if a == a.upper())]
        code, drawn = _flag(feature, namesakes, drawings)
        flag = flags.get(code, {})
        places.append(
            Place(
                feature["wikidata"],
                feature["nameEn"],
                _aliases(feature, [flag.get("name", ""), *(a for a in listed if a != a.upper())]),
                tuple(code for code in codes if code),
                _kind(feature, countries),
                _region(feature, regions) or flag.get("continent", ""),
                flag.get("capital", ""),
                code,
                drawn,
            )
        )
    return places


def _flag(
    feature: Properties, namesakes: Mapping[str, str], drawings: FlagDrawings
) -> tuple[str, dict[str, str]]:
    """What the flag of a place is called, and its drawings; nothing if it has none."""
    id = feature["wikidata"]
    own = [feature.get("iso1A2") or "", *(a for a in feature.get("aliases") or [] if "-" in a)]
    lent = [code for code, namesake in namesakes.items() if namesake == id]
    for code in [*lent, *map(str.lower, own)]:
        if code and namesakes.get(code, id) == id and (drawn := drawings.of(code)):
            return code, drawn
    return "", {}


def _aliases(feature: Properties, others: Iterable[str]) -> tuple[str, ...]:
    """Other names of a place: those that are known, and what people leave of all of them."""
    name = feature["nameEn"]
    found: dict[str, None] = {}
    for known in filter(None, (name, *others)):
        short = _LEFT_OUT_BEHIND.sub("", known)
        if (begin := _LEFT_OUT.match(short)) and feature.get("level") not in _KINDS and " and " not in short:
            rest = short[begin.end() :]
            short = short if rest in _NO_NAMES else rest
        found |= dict.fromkeys((known, short))
    return tuple(alias for alias in found if alias != name)


def _kind(feature: Properties, countries: Mapping[str, Properties]) -> str:
    if kind := _KINDS.get(feature.get("level", "")):
        return kind
    country = countries.get(feature.get("country", ""))
    return f"territory of {country['nameEn']}" if country else "country"


def _region(feature: Properties, regions: Mapping[str, Properties]) -> str:
    """Name of the smallest part of the world that holds a place; empty if there is none."""
    within = [regions[group] for group in feature.get("groups") or [] if group in regions]
    smallest = min(within, key=lambda region: _REGIONS.index(region["level"]), default={"nameEn": ""})
    name: str = smallest["nameEn"]
    return name
