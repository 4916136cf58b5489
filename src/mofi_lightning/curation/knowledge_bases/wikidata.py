"""Wikidata: the JSON dump, an array with one entity a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mofi_lightning.curation.knowledge_bases.base import Faults, KnowledgeBaseReader
from mofi_lightning.curation.knowledge_bases.lines import lines
from mofi_lightning.data.processes import map_processes
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

# pages of Wikimedia's projects that have items, but are nothing that one could see: disambiguation page,
# the same of human names, category, template, list article, module, project page, permanent duplicate
WIKIMEDIA_PAGES = (
    "Q4167410",
    "Q22808320",
    "Q4167836",
    "Q11266439",
    "Q13406463",
    "Q15184295",
    "Q14204246",
    "Q21286738",
)
_FEW_SITELINKS = "fewer sitelinks than asked for"
# lines that a process reads at a time
_BLOCK_BYTES = 1 << 22
# what a line takes in memory beside its text
_LINE_BYTES = 128


class _Block(NamedTuple):
    """Lines that hold an entity, with their numbers, and what was wrong with lines since the last block."""

    lines: list[tuple[int, bytes]]
    faults: Faults


class WikidataReader(KnowledgeBaseReader):
    """Items of a Wikidata JSON dump (latest-all.json.gz or .bz2, or plain), streamed line by line.

    The name is the label in the language, or in the first of the fallbacks that has one; the aliases are all
    other labels and aliases in these languages. Popularity is the number of sitelinks; types are the values
    of "instance of" (P31) that are not deprecated. A line that cannot be read is reported by its number, and
    left out.

    Args:
        path: The dump: .json, .json.gz or .json.bz2.
        language: Code of the language of names and descriptions.
        fallbacks: Languages to take what the first one lacks from; Wikidata keeps names that are the same in
            all languages under "mul".
        min_sitelinks: The fewest Wikipedia pages and the like about an item.
        types: Ids of classes. If there are any, only items that are directly an instance of one are kept.
        exclude_types: Ids of classes whose direct instances are left out; by default, pages of Wikimedia's
            projects: disambiguation pages (Q4167410, Q22808320), categories (Q4167836), templates
            (Q11266439), lists (Q13406463), modules (Q15184295), project pages (Q14204246) and permanent
            duplicates (Q21286738).
        num_workers: Processes that read the JSON, beside the one that decompresses and writes; 0 for none.

    Raises:
        InputError: a value is out of range; when entities are read: there is no such file, or it is no dump.
    """

    def __init__(
        self,
        path: Path,
        language: str = "en",
        fallbacks: Sequence[str] = ("mul",),
        min_sitelinks: int = 0,
        types: Sequence[str] = (),
        exclude_types: Sequence[str] = WIKIMEDIA_PAGES,
        num_workers: int = 0,
    ) -> None:
        if min_sitelinks < 0:
            raise InputError(f"min_sitelinks {min_sitelinks} is out of range; it is a number from 0")
        for id in (*types, *exclude_types):
            if not (id[:1] == "Q" and id[1:].isdecimal()):
                raise InputError(f"{id!r} is no id of a class of Wikidata; give one such as Q515 (city)")
        self._path = path
        self._num_workers = num_workers
        languages = tuple(dict.fromkeys((language, *fallbacks)))
        self._parser = _Parser(languages, min_sitelinks, frozenset(types), frozenset(exclude_types))

    def entities(self) -> Iterator[Entity]:
        """See `KnowledgeBaseReader`."""
        for entities, faults in map_processes(self._parser, self._blocks(), self._num_workers):
            self.faults.update(faults)
            yield from entities

    def _blocks(self) -> Iterator[_Block]:
        opened = ended = False
        number = size = 0
        waiting: list[tuple[int, bytes]] = []
        faults = Faults()
        for number, line in lines(self._path, faults):
            text = line.strip(b" \t\r\n").removesuffix(b",")
            if text in (b"", b"[", b"]"):
                opened, ended = opened or text == b"[", ended or text == b"]"
                continue
            waiting.append((number, text))
            size += len(text) + _LINE_BYTES
            if size >= _BLOCK_BYTES:
                yield _Block(waiting, faults.take())
                waiting, size = [], 0
        if opened and not ended:
            faults.add("the dump ends before its closing bracket", f"line {number + 1:,}")
        yield _Block(waiting, faults)


@dataclass(frozen=True)
class _Parser:
    """Reads the lines of a block; sent to every process that does."""

    languages: tuple[str, ...]
    min_sitelinks: int
    types: frozenset[str]
    exclude_types: frozenset[str]

    def __call__(self, block: _Block) -> tuple[list[Entity], Faults]:
        entities: list[Entity] = []
        faults = block.faults
        for number, text in block.lines:
            where = f"line {number:,}"
            # every sitelink has this key: without reading the JSON, an upper bound of their number
            if text.count(b'"site"') < self.min_sitelinks and _looks_whole(text):
                faults.add(_FEW_SITELINKS)
                continue
            try:
                found = self._entity(json.loads(text.decode()))
            except UnicodeDecodeError as error:
                faults.add("not UTF-8", where, str(error))
            except ValueError as error:
                faults.add("no JSON", where, str(error))
            except RecursionError:
                faults.add("nested too deeply", where)
            except (TypeError, KeyError, AttributeError) as error:
                faults.add("not in the form of an entity", where, f"{type(error).__name__}: {error}")
            else:
                if isinstance(found, Entity):
                    entities.append(found)
                else:
                    faults.add(found)
        return entities, faults

    def _entity(self, item: Any) -> Entity | str:
        """The entity of an item of the dump, or why it is left out."""
        id = item["id"]
        if not isinstance(id, str):
            raise TypeError(f"the id is {type(id).__name__}")
        if (kind := item.get("type", "item")) != "item":
            return f"no item but a {kind}" if kind in ("property", "lexeme") else "no item"
        popularity = len(item.get("sitelinks") or ())
        if popularity < self.min_sitelinks:
            return _FEW_SITELINKS
        labels = _values(item["labels"], self.languages)
        if not labels:
            return f"no label in {' or '.join(self.languages)}"
        types = _instance_of(item.get("claims") or {})
        if self.types and self.types.isdisjoint(types):
            return "not an instance of the types to keep"
        if not self.exclude_types.isdisjoint(types):
            return "an instance of a type to leave out"
        # an empty map may be written as an empty list
        aliases = item.get("aliases") or {}
        descriptions = item.get("descriptions") or {}
        others = [alias["value"] for code in self.languages for alias in aliases.get(code, ())]
        names = dict.fromkeys((*labels[1:], *others))
        names.pop(labels[0], None)
        description = next(iter(_values(descriptions, self.languages)), "")
        return _checked(Entity(id, labels[0], tuple(names), description, float(popularity), tuple(types)))


def _looks_whole(line: bytes) -> bool:
    """Whether `line` shows no sign of damage; one that does is read, so that its fault is told."""
    return (
        line[:1] == b"{"
        and line[-1:] == b"}"
        and line.isascii()  # as Wikidata writes it
        and line.count(b"{") == line.count(b"}")
        and b",}" not in line
    )


def _values(texts: Any, languages: Sequence[str]) -> list[str]:
    """The texts in `languages`, in this order; one that is blank is none."""
    found = (texts[code]["value"] for code in languages if code in texts)
    return [text for text in found if text.strip()]


def _instance_of(claims: Any) -> dict[str, None]:
    found: dict[str, None] = {}
    for statement in claims.get("P31", ()):
        # an unknown value, or none, has no datavalue
        value = statement["mainsnak"].get("datavalue", {}).get("value")
        if value and statement.get("rank") != "deprecated":
            found[value.get("id") or f"Q{value['numeric-id']}"] = None
    return found


def _checked(entity: Entity) -> Entity:
    for text in (entity.name, entity.description, *entity.aliases, *entity.types):
        if not isinstance(text, str):
            raise TypeError(f"a text is {type(text).__name__}")
    return entity
