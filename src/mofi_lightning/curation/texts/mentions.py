"""Mention detection: which names of the knowledge base stand in a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.names import words

# English words that are names of something (blood type A, the letter I) but hardly ever mean it in a text
STOP_WORDS = (
    "a", "about", "after", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been",
    "before", "being", "but", "by", "can", "could", "did", "do", "does", "for", "from", "had", "has",
    "have", "he", "her", "here", "him", "his", "how", "i", "if", "in", "into", "is", "it", "its",
    "just", "me", "more", "most", "my", "no", "nor", "not", "of", "off", "on", "only", "or", "other",
    "our", "out", "over", "own", "she", "should", "so", "some", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "through", "to", "too", "under", "up",
    "us", "very", "was", "we", "were", "what", "when", "where", "which", "while", "who", "whom", "why",
    "will", "with", "would", "you", "your",
)  # fmt: skip

# what captions say of the picture or the page; that a company or a film is called so does not help
PAGE_WORDS = (
    "background", "caption", "clipart", "download", "file", "free", "full", "gallery", "gif", "hd",
    "href", "html", "http", "https", "icon", "illustration", "image", "img", "jpeg", "jpg",
    "online", "page", "photo", "photograph", "pic", "picture", "png", "preview", "royalty",
    "screenshot", "share", "stock", "svg", "thumbnail", "untitled", "url", "vector", "view",
    "wallpaper", "webp", "website", "www",
)  # fmt: skip


class MentionDetector(ABC):
    """Base class of mention detectors.

    A detector is a small object of settings: it is pickled, sent to every worker, and loads what it needs
    there, once a process. What it finds is a function of the text alone.
    """

    @abstractmethod
    def find(self, texts: Sequence[str], knowledge_base: KnowledgeBase) -> list[list[str]]:
        """The names that stand in each of `texts`, normalised (`names.normalise`), in the order of the text.

        A name that `knowledge_base` does not have is dropped by `find_all`.
        """


@dataclass(frozen=True)
class Gazetteer(MentionDetector):
    """Names of the knowledge base: the longest from left to right, whole words only, none overlapping.

    A stop word, a number or a single character is no mention by itself; inside a longer name it counts (`the
    who`, `7 up`, `vitamin c`).

    Args:
        ignored: words that are no mentions by themselves either. The default are English words that captions
            say of the picture or the page (image, free, download), whatever it shows.
    """

    ignored: tuple[str, ...] = PAGE_WORDS

    def find(self, texts: Sequence[str], knowledge_base: KnowledgeBase) -> list[list[str]]:
        """See `MentionDetector`."""
        find, ignored = knowledge_base.aliases.find, _normalised(self.ignored)
        return [[name for name in find(words(text)) if _is_mention(name, ignored)] for text in texts]


def find_all(
    detectors: Iterable[MentionDetector], texts: Sequence[str], knowledge_base: KnowledgeBase
) -> list[list[str]]:
    """The union of what `detectors` find: for each of `texts` the names that `knowledge_base` has, each once.

    They come in the order of the first detector, then what the next one adds. The longest names win here too:
    a name inside a longer one that was found is dropped, unless it also stands elsewhere in the text.
    """
    found: list[dict[str, None]] = [{} for _ in texts]
    for detector in detectors:
        for names, more in zip(found, detector.find(texts, knowledge_base), strict=True):
            names.update(dict.fromkeys(more))
    number = knowledge_base.aliases.number
    known = ([name for name in names if number(name) >= 0] for names in found)
    return [_longest(names, text) for names, text in zip(known, texts, strict=True)]


def _longest(names: list[str], text: str) -> list[str]:
    """`names`, but for those that stand in `text` only inside longer ones of them."""
    side_by_side = f" {' | '.join(names)} "
    inside = {name for name in names if side_by_side.count(f" {name} ") > 1}
    if not inside:
        return names
    # two spaces between words: names that follow each other do not share one
    left = _spaced(words(text))
    dropped = set()
    for name in sorted(names, key=lambda name: -name.count(" ")):
        spaced = _spaced(name.split())
        if name in inside and spaced not in left:
            dropped.add(name)
        left = left.replace(spaced, "|")
    return [name for name in names if name not in dropped]


def _spaced(words: Iterable[str]) -> str:
    return "".join(f" {word} " for word in words)


def _is_mention(name: str, ignored: frozenset[str]) -> bool:
    return " " in name or not (name in ignored or len(name) == 1 or name.isdigit())


@cache
def _normalised(ignored: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word for text in (*STOP_WORDS, *ignored) for word in words(text))
