"""Mention detection: which stretches of a text are an alias of some entity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mofi_lightning.types import InputError

# English words that are aliases of something (blood type A, the letter I) but hardly ever mean it in a text
STOP_WORDS = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "he",
        "her",
        "his",
        "i",
        "in",
        "is",
        "it",
    }
    | {"its", "me", "my", "no", "not", "of", "on", "or", "our", "she", "that", "the", "their", "this", "to"}
    | {"us", "was", "we", "were", "with", "you", "your"}
)


class Mention(NamedTuple):
    """An alias found in a text.

    Attributes:
        alias: the normalised alias.
        start: its first word, counted from 0.
        stop: the word after its last.
    """

    alias: str
    start: int
    stop: int


class Gazetteer:
    """Finds aliases in texts: the longest from left to right, whole words only, none overlapping.

    The aliases lie in a MARISA trie (Yata 2011), some five bytes each; every word of a text takes one search.
    A stop word by itself is no mention; inside a longer alias it counts.

    Args:
        aliases: normalised aliases (`knowledge_base.normalise`).
    """

    def __init__(self, aliases: Iterable[str]) -> None:
        try:
            from marisa_trie import Trie
        except ImportError as error:
            raise InputError(
                "curation needs marisa-trie; pip install 'mofi-lightning[curation]' brings it"
            ) from error

        kept = [alias for alias in aliases if alias not in STOP_WORDS]
        # the space behind every alias makes a prefix of the text a prefix of whole words
        self._trie = Trie(alias + " " for alias in kept)
        self._longest = max((alias.count(" ") + 1 for alias in kept), default=0)

    def find(self, words: Sequence[str]) -> list[Mention]:
        """The mentions in `words` (normalised by `knowledge_base.words`), in their order."""
        mentions = []
        start = 0
        while start < len(words):
            window = " ".join(words[start : start + self._longest]) + " "
            found = max(self._trie.prefixes(window), key=len, default="")
            stop = start + max(1, found.count(" "))
            if found:
                mentions.append(Mention(found[:-1], start, stop))
            start = stop
        return mentions
