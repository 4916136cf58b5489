"""The name-suggestion-index of OpenStreetMap: brands, operators, transit networks, flags; by Wikidata id."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mofi_lightning.curation.knowledge_bases.base import KnowledgeBaseReader
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

_WIKIDATA = ":wikidata"
# tree of the index -> the tag of its items that tells what the item is
_MAIN = {"brands": "brand", "operators": "operator", "transit": "network", "flags": "flag"}
_OTHER_NAMES = ("name", "official_name", "short_name", "alt_name", "int_name", "old_name")
_MOST_KINDS = 3


class NameSuggestionIndexReader(KnowledgeBaseReader):
    """Brands and the like of the npm package name-suggestion-index (version 6 or later), by Wikidata id.

    The name is the Wikidata label; aliases are the names of the items that have the id: brand, operator,
    network, short and official names in all languages, and the names that the index matches. The description
    is that of Wikidata, with the kinds of place that most items are, such as "fuel"; types are all of them
    (`amenity=fuel`). Popularity is the number of items.

    Args:
        folder: The package: the folder with dist/json/nsi.min.json and dist/wikidata/wikidata.min.json.

    Raises:
        InputError: when entities are read: a file is missing, or not in the form of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entities(self) -> Iterator[Entity]:
        """See `KnowledgeBaseReader`; sorted by id."""
        known = self._read("dist/wikidata/wikidata.min.json", "wikidata")
        names: defaultdict[str, dict[str, None]] = defaultdict(dict)
        kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for path, category in self._read("dist/json/nsi.min.json", "nsi").items():
            tree, _, kind = path.partition("/")
            for place, item in enumerate(category["items"]):
                try:
                    of_item = list(_names(item, _MAIN.get(tree, "")))
                except (TypeError, KeyError, AttributeError) as error:
                    self.faults.add("not in the form of an item", f"{path}, item {place}", repr(error))
                    continue
                if not of_item:
                    self.faults.add("item without a Wikidata id")
                for id, found in of_item:
                    names[id].update(dict.fromkeys(found))
                    kinds[id][kind.replace("/", "=")] += 1
        for id in sorted({*known, *names}):
            try:
                label, told = (
                    _text(known.get(id, {}).get(field) or "") for field in ("label", "description")
                )
            except TypeError as error:
                self.faults.add("not in the form of a record", id, str(error))
                continue
            aliases = list(names[id])
            name = label or next(iter(aliases), "")
            counts = sorted(kinds[id].items(), key=lambda pair: (-pair[1], pair[0]))
            places = [kind.partition("=")[2].replace("_", " ") for kind, _ in counts[:_MOST_KINDS]]
            description = "; ".join(filter(None, (told, ", ".join(dict.fromkeys(places)))))
            yield Entity(
                id,
                name,
                tuple(alias for alias in aliases if alias != name),
                description,
                float(sum(kinds[id].values())),
                tuple(kind for kind, _ in counts),
            )

    def _read(self, file: str, key: str) -> dict[str, Any]:
        path = self.folder / file
        way_out = "give the folder of the npm package name-suggestion-index"
        try:
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"no {file} in {self.folder} ({error.strerror}); {way_out}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no JSON ({error}); download the package anew") from error
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
            raise InputError(f"{path} is not in the form of the name-suggestion-index; {way_out}")
        if key == "nsi" and not all(isinstance(c.get("items"), list) for c in found.values()):
            raise InputError(f"{path} is not in the form of the name-suggestion-index; {way_out}")
        return found


def _names(item: Mapping[str, Any], main: str) -> Iterator[tuple[str, list[str]]]:
    """The Wikidata ids of an item, each with the names it has there; the tag `main` is what the item is."""
    tags = item["tags"]
    for tag, id in tags.items():
        subject = tag.removesuffix(_WIKIDATA)
        if subject == tag or subject.startswith("not:"):
            continue
        own = (subject, f"{subject}:name", f"{subject}:short", *(_OTHER_NAMES if subject == main else ()))
        found = [value for key, value in tags.items() if _is_of(key, own)]
        if subject == main:
            found += [item["displayName"], *item.get("matchNames", ())]
        yield _text(id), list(map(_text, found))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _is_of(key: str, tags: tuple[str, ...]) -> bool:
    """Whether `key` is one of `tags`, or one of them in some language, as in `brand:en` or `name:zh-Hant`."""
    if key in tags:
        return True
    tag, _, language = key.rpartition(":")
    return tag in tags and 2 <= len(language.partition("-")[0]) <= 3
