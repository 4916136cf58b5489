"""The verbs `mofi kb build`, `mofi kb stats` and `mofi kb lookup`."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mofi_lightning.curation.knowledge_bases.base import KnowledgeBaseReader, shown
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase

# names that `mofi kb stats` shows of each sort
_SHOWN = 5
# rows read at a time
_ROWS = 1 << 16
_DESCRIPTION = 80


def build(reader: KnowledgeBaseReader, output: Path) -> None:
    """Build a knowledge base: entities, their names, and which entities a name may mean.

    What the reader has to leave out (a line of a dump that is cut off, an entity without a name, an id that
    comes again) is counted and told at the end. The knowledge base appears when it is complete; the memory
    that this takes is bounded, however many entities there are.

    Args:
        reader: Where the entities come from.
        output: Folder of the knowledge base to make.

    Raises:
        InputError: The reader's file cannot be used, it has no entity, or `output` exists.
    """
    from mofi_lightning.curation.knowledge_bases.knowledge_base import build_knowledge_base
    from mofi_lightning.data.writing import refuse_existing

    refuse_existing(output)
    faults = reader.faults
    base = build_knowledge_base(reader.entities(), output, faults, reader.count())
    print(f"{output}: {len(base):,} entities, {len(base.aliases):,} names")
    for reason, count in sorted(faults.counts.items(), key=lambda pair: (-pair[1], pair[0])):
        print(f"  {count:>12,}  {reason}")
    if faults.examples:
        print("for instance:")
        print("\n".join(f"  {example}" for example in faults.examples))


def stats(knowledge_base: Path) -> None:
    """Print what a knowledge base holds: entities, names, and how many entities a name may mean.

    Args:
        knowledge_base: Its folder.

    Raises:
        InputError: There is no knowledge base.
    """
    from rich.console import Console

    from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase

    base = KnowledgeBase(knowledge_base)
    names = _count_names(base)
    described, popular, typed = _shares(base)
    size = sum(file.stat().st_size for file in knowledge_base.rglob("*") if file.is_file())
    figures = {
        "entities": f"{len(base):,}",
        "  with a description": f"{described:.1%}",
        "  with a popularity": f"{popular:.1%}",
        "  with types": f"{typed:.1%}",
        "names, normalised": f"{names.total:,}",
        "  of more than one entity": f"{names.ambiguous:,}",
        "entities a name, on average": f"{names.meanings / max(1, names.total):.2f}",
        "entities a name, at most": f"{names.most_meanings[0][0] if names.most_meanings else 0:,}",
        "different words": f"{base.word_count:,}",
        "bytes on disk": f"{size:,}",
        **{f"left out: {reason}": f"{count:,}" for reason, count in base.skipped.items()},
    }
    console = Console()
    print(f"{knowledge_base}:")
    console.print(_table(("", ""), figures.items(), right=1))
    most = ((name, f"{count:,}") for count, name in names.most_meanings)
    console.print(_table(("names of most meanings", "entities"), most, right=1))
    longest = ((name, f"{count:,}") for count, name in names.longest)
    console.print(_table(("longest names", "words"), longest, right=1))


def lookup(knowledge_base: Path, text: str, most: int = 10) -> None:
    """Show which names of a knowledge base stand in a text, and the entities that each may mean.

    Args:
        knowledge_base: Its folder.
        text: An alt-text or a name; quote it if it has several words.
        most: The most entities to show of a name, the most popular first.

    Raises:
        InputError: There is no knowledge base, or `most` is out of range.
    """
    from rich.console import Console

    from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
    from mofi_lightning.curation.knowledge_bases.names import words
    from mofi_lightning.curation.texts.mentions import Gazetteer

    if most < 1:
        raise InputError(f"most {most} is out of range; at least 1 entity is shown")
    base = KnowledgeBase(knowledge_base)
    names = list(dict.fromkeys(Gazetteer().find([text], base)[0]))
    if not names:
        print(f"no name of {knowledge_base} stands in {shown(text)!r}")
        if by_themselves := dict.fromkeys(base.aliases.find(words(text))):
            print(
                f"but {shown(', '.join(by_themselves))}, which names something and is no mention by itself: "
                "a stop word, what captions say of any picture, a number or a single character"
            )
    console = Console()
    for name in names:
        rows, named = base.aliases.candidates(base.aliases.number(name))
        popularity = base.popularity(rows)
        # of equal popularity, first those whose preferred name it is, then those of the lower row
        order = sorted(range(len(rows)), key=lambda i: (-popularity[i], not named[i], rows[i]))
        entities = [base[int(rows[place])] for place in order[:most]]
        of_them = f", the first {most:,} of {len(rows):,} entities" if len(rows) > most else ""
        print(f"{name}{of_them}:")
        lines = ((e.id, e.name, f"{e.popularity:g}", _cut(e.description)) for e in entities)
        console.print(_table(("id", "name", "popularity", "description"), lines, right=2))


class _Names(NamedTuple):
    """The names of a knowledge base, counted.

    Attributes:
        total: number of names.
        meanings: number of (name, entity).
        ambiguous: number of names of more than one entity.
        most_meanings: (entities, name) of those that have most, in this order.
        longest: (words, name) of those that have most words, in this order.
    """

    total: int
    meanings: int
    ambiguous: int
    most_meanings: list[tuple[int, str]]
    longest: list[tuple[int, str]]


def _count_names(base: KnowledgeBase) -> _Names:
    from mofi_lightning.progress import track

    aliases = base.aliases
    meanings = ambiguous = 0
    # heaps of the (number, name) with the highest numbers; of equal numbers, the names that come first
    most: list[tuple[int, _Backwards]] = []
    longest: list[tuple[int, _Backwards]] = []
    for name in track(aliases, "counting names", len(aliases)):
        count = len(aliases.candidates(aliases.number(name))[0])
        meanings += count
        ambiguous += count > 1
        for heap, value in ((most, count), (longest, name.count(" ") + 1)):
            if len(heap) < _SHOWN:
                heapq.heappush(heap, (value, _Backwards(name)))
            elif value >= heap[0][0]:
                heapq.heappushpop(heap, (value, _Backwards(name)))
    tops = [[(value, str(name)) for value, name in sorted(heap, reverse=True)] for heap in (most, longest)]
    return _Names(len(aliases), meanings, ambiguous, *tops)


class _Backwards(str):
    """A text that comes after all those that it would stand before."""

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


def _shares(base: KnowledgeBase) -> tuple[float, float, float]:
    """Share of the entities with a description, with a popularity, and with types."""
    described = popular = typed = 0
    for start in range(0, len(base), _ROWS):
        rows = range(start, min(start + _ROWS, len(base)))
        described += sum(map(bool, base.descriptions(rows)))
        popular += int((base.popularity(rows) > 0).sum())
        typed += sum(map(bool, base.types(rows)))
    return described / len(base), popular / len(base), typed / len(base)


def _cut(text: str) -> str:
    return text if len(text) <= _DESCRIPTION else f"{text[: _DESCRIPTION - 3]}..."


def _table(header: Sequence[str], rows: Iterable[Iterable[str]], right: int) -> Table:
    """A table for the terminal, in which column `right` is flushed right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(header))
    for number, title in enumerate(header):
        table.add_column(Text(title), justify="right" if number == right else "left", overflow="fold")
    for row in rows:
        # as texts: brackets in a name are no markup
        table.add_row(*map(Text, row))
    return table
