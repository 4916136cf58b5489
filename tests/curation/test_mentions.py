import sys
from collections.abc import Sequence
from random import Random

import pytest

from mofi_lightning.curation.knowledge_base import words
from mofi_lightning.curation.mentions import STOP_WORDS, Gazetteer, Mention
from mofi_lightning.types import InputError


def brute_force(aliases: set[str], text: Sequence[str]) -> list[Mention]:
    """Tries every stretch of words, the longest first, from left to right."""
    mentions, start = [], 0
    while start < len(text):
        for stop in range(len(text), start, -1):
            stretch = " ".join(text[start:stop])
            if stretch in aliases and stretch not in STOP_WORDS:
                mentions.append(Mention(stretch, start, stop))
                start = stop
                break
        else:
            start += 1
    return mentions


def test_mentions_are_those_of_a_brute_force_search() -> None:
    random = Random(1)
    letters = ["b", "c", "bb", "cb", "the", "bc"]
    for _ in range(50):
        aliases = {" ".join(random.choices(letters, k=random.randint(1, 4))) for _ in range(12)}
        gazetteer = Gazetteer(aliases)
        for _ in range(20):
            text = random.choices([*letters, "x"], k=random.randint(0, 12))
            assert gazetteer.find(text) == brute_force(aliases, text)


def test_only_whole_words_are_mentions() -> None:
    gazetteer = Gazetteer(["cat", "hot dog"])

    assert gazetteer.find(words("concatenate a category of cats")) == [Mention("cat", 4, 5)]
    assert gazetteer.find(words("hot dogma")) == []


def test_the_longest_alias_wins() -> None:
    found = Gazetteer(["new", "new york", "new york city", "city hall"]).find(words("New York City Hall"))

    assert [mention.alias for mention in found] == ["new york city"]


def test_a_stop_word_counts_only_within_a_longer_alias() -> None:
    gazetteer = Gazetteer(["a", "king of spade", "of"])

    assert [mention.alias for mention in gazetteer.find(words("a king of spades"))] == ["king of spade"]
    assert gazetteer.find(words("a drawing of")) == []


def test_an_empty_gazetteer_finds_nothing() -> None:
    assert Gazetteer([]).find(["cat"]) == []


def test_a_missing_trie_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "marisa_trie", None)
    with pytest.raises(InputError, match=r"mofi-lightning\[curation\]"):
        Gazetteer(["cat"])
