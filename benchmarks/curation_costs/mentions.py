"""Mention detection over 1.2 million aliases against its peers: CPU time (medians of rounds) and memory.

Aliases and texts are made from a seed: names of one to five words, texts of one to three names among words
that captions are full of, some eleven words each. Each contestant works in a process of its own:

- `Gazetteer` over a knowledge base on disk, normalising every text in full;
- pyahocorasick, the longest match of whole words by `iter_long`: every word stands between two spaces of its
  own, which makes word boundaries a matter of the automaton. The texts are such that lower-casing them is
  enough to find the same mentions, and that is all it does; this is the contest that counts. A second one
  gives it the same normalised words;
- pyahocorasick as lean as it gets: plain names, `iter`, word boundaries and longest match checked in Python;
- spaCy's PhraseMatcher (lower-cased, blank English pipeline) over 100,000 of the aliases.

That Gazetteer and pyahocorasick find the same mentions is asserted. Memory is the resident set of a process
after the matching, imports and texts included; what it grew by is given for ours too.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

ALIASES = 1_200_000
ALIASES_OF_AN_ENTITY = 3
PHRASES = 100_000
TEXTS = 20_000
TEXTS_OF_PHRASE_MATCHER = 2_000
FILLERS = (
    "a the of in with and on for at photo image free download my new best from by to picture view old red "
    "big house background stock vector family summer beautiful black white design"
)
Find = Callable[[list[str]], list[list[str]]]


def make_aliases(count: int, seed: int = 1) -> list[str]:
    """`count` different normalised names: frequent words are frequent in them, as in real ones."""
    from mofi_lightning.curation.knowledge_bases.names import normalise
    from mofi_lightning.curation.texts.mentions import PAGE_WORDS, STOP_WORDS

    never = {normalise(word) for word in (*STOP_WORDS, *PAGE_WORDS)}
    draw = random.Random(seed)
    syllables = [
        a + b + c
        for a in "bcdfghjklmnprstvw"
        for b in ("a", "e", "i", "o", "u", "ou")
        for c in ("", "n", "r")
    ]
    vocabulary = ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 3, 4)))) for _ in range(150_000)]
    lengths = random.Random(seed).choices((1, 2, 3, 4, 5), (30, 40, 20, 7, 3), k=2 * count)
    names: dict[str, None] = {}
    for length in lengths:
        words = (vocabulary[int(len(vocabulary) * draw.random() ** 3)] for _ in range(length))
        name = normalise(" ".join(words))
        if name not in never:
            names[name] = None
        if len(names) == count:
            return list(names)
    raise AssertionError("too few different names")


def make_texts(aliases: list[str], count: int, seed: int = 2) -> Iterator[str]:
    """`count` texts of aliases among fillers, some words capitalised."""
    draw = random.Random(seed)
    fillers = FILLERS.split()
    for _ in range(count):
        words: list[str] = []
        for _ in range(draw.randint(1, 3)):
            words += draw.choices(fillers, k=draw.randint(1, 4))
            words += draw.choice(aliases).split()
        words += draw.choices(fillers, k=draw.randint(0, 2))
        yield " ".join(word.capitalize() if draw.random() < 0.3 else word for word in words)


def gazetteer(folder: Path) -> Find:
    from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
    from mofi_lightning.curation.texts.mentions import Gazetteer

    knowledge_base, detector = KnowledgeBase(folder / "knowledge_base"), Gazetteer()
    return lambda texts: detector.find(texts, knowledge_base)


def aho_corasick(folder: Path) -> Find:
    find = _aho_corasick(folder).iter_long
    return lambda texts: [
        [name for _, name in find(f" {text.lower().replace(' ', '  ')} ")] for text in texts
    ]


def aho_corasick_normalised(folder: Path) -> Find:
    from mofi_lightning.curation.knowledge_bases.names import words

    find = _aho_corasick(folder).iter_long
    return lambda texts: [[name for _, name in find(f" {'  '.join(words(text))} ")] for text in texts]


def aho_corasick_lean(folder: Path) -> Find:
    import ahocorasick

    automaton = ahocorasick.Automaton(ahocorasick.STORE_LENGTH)
    with (folder / "aliases.txt").open() as file:
        for line in file:
            automaton.add_word(line[:-1])
    automaton.make_automaton()

    def find(text: str) -> list[str]:
        spaced = f" {text.lower()} "
        stops: dict[int, int] = {}
        for last, length in automaton.iter(spaced):
            if spaced[last + 1] == " " and spaced[last - length] == " ":
                stops[last - length + 1] = last + 1  # they come in the order of their ends: the longest stays
        names, position = [], 0
        for start in sorted(stops):
            if start >= position:
                position = stops[start]
                names.append(spaced[start:position])
        return names

    return lambda texts: list(map(find, texts))


def phrase_matcher(folder: Path) -> Find:
    import spacy
    from spacy.matcher import PhraseMatcher
    from spacy.util import filter_spans

    nlp = spacy.blank("en")
    matcher = PhraseMatcher(nlp.vocab)
    for phrase in (folder / "phrases.txt").read_text().splitlines():
        matcher.add(phrase, [nlp.make_doc(phrase)])
    return lambda texts: [
        [span.text for span in filter_spans(matcher(nlp.make_doc(text.lower()), as_spans=True))]
        for text in texts
    ]


def _aho_corasick(folder: Path) -> Any:
    import ahocorasick

    automaton = ahocorasick.Automaton()
    with (folder / "aliases.txt").open() as file:
        for line in file:
            name = line[:-1]
            automaton.add_word(f" {name.replace(' ', '  ')} ", name)
    automaton.make_automaton()
    return automaton


class Contestant:
    """A process that searches the texts when it is told to.

    Attributes:
        found: what it found in each text.
        seconds: of CPU time, one a round.
        grown_mb: resident set after the first matching, less that with imports and texts only.
        whole_mb: resident set after the first matching.
    """

    def __init__(self, module: str, prepare: Callable[[Path], Find], folder: Path, texts: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (module, prepare, folder, folder / texts, other)
        self._process = context.Process(target=_contest, args=arguments, daemon=True)
        self._process.start()
        other.close()
        self.found, self.grown_mb, self.whole_mb = self._connection.recv()
        self.seconds: list[float] = []

    def run(self) -> None:
        """Search all texts once."""
        self._connection.send(None)
        self.seconds.append(self._connection.recv())

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    @property
    def rate(self) -> float:
        """Texts a second of CPU time."""
        return len(self.found) / median(self.seconds)


def _contest(
    module: str, prepare: Callable[[Path], Find], folder: Path, file: Path, connection: Connection
) -> None:
    importlib.import_module(module)
    texts = file.read_text().splitlines()
    before = _resident_mb()
    find = prepare(folder)
    found = find(texts)
    resident = _resident_mb()
    connection.send((found, resident - before, resident))
    del found
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        start = time.process_time()
        find(texts)
        connection.send(time.process_time() - start)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _write_inputs(folder: Path) -> None:
    from mofi_lightning.curation.knowledge_bases.knowledge_base import build_knowledge_base
    from mofi_lightning.sources.base import Entity

    aliases = make_aliases(ALIASES)
    entities = (
        Entity(f"Q{start}", aliases[start], tuple(aliases[start + 1 : start + ALIASES_OF_AN_ENTITY]))
        for start in range(0, ALIASES, ALIASES_OF_AN_ENTITY)
    )
    build_knowledge_base(entities, folder / "knowledge_base")
    for name, lines in {
        "aliases.txt": aliases,
        "phrases.txt": aliases[:PHRASES],
        "texts.txt": make_texts(aliases, TEXTS),
        "phrase_texts.txt": make_texts(aliases[:PHRASES], TEXTS_OF_PHRASE_MATCHER),
    }.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def mention_figures(rounds: int) -> dict[str, float]:
    """The figures of all contests.

    Args:
        rounds: passes of each contestant over the texts, in turn.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        ours = Contestant("mofi_lightning.curation.texts.mentions", gazetteer, folder, "texts.txt")
        lower = Contestant("ahocorasick", aho_corasick, folder, "texts.txt")
        normalised = Contestant("ahocorasick", aho_corasick_normalised, folder, "texts.txt")
        lean = Contestant("ahocorasick", aho_corasick_lean, folder, "texts.txt")
        phrases = Contestant("spacy.matcher", phrase_matcher, folder, "phrase_texts.txt")
        contestants = (ours, lower, normalised, lean, phrases)
        for _ in range(rounds):
            for contestant in contestants:
                contestant.run()
        for contestant in contestants:
            contestant.stop()
        assert ours.found == lower.found == normalised.found == lean.found
        assert sum(map(len, phrases.found)) > len(phrases.found)
    return {
        "mention_over_pyahocorasick": ours.rate / lower.rate,
        "mention_over_pyahocorasick_normalised": ours.rate / normalised.rate,
        "phrase_matcher_over_pyahocorasick": phrases.rate / lower.rate,
        "mention_over_pyahocorasick_lean": ours.rate / lean.rate,
        "mention_process_mb": ours.whole_mb,
        "mention_process_grown_mb": ours.grown_mb,
        "pyahocorasick_process_mb": lower.whole_mb,
        "pyahocorasick_lean_process_mb": lean.whole_mb,
        "phrase_matcher_process_mb": phrases.whole_mb,
        "mention_texts_per_s": ours.rate,
        "pyahocorasick_texts_per_s": lower.rate,
        "mentions_per_text": sum(map(len, ours.found)) / TEXTS,
    }
