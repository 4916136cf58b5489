import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.texts.mentions import Gazetteer, MentionDetector, find_all
from mofi_lightning.sources.base import Entity

NAMES = (
    "cat", "hot dog", "New York", "New York City", "City Hall", "a", "of", "King of Spades", "The Who", "IT",
    "7 Up", "7", "1984", "C", "Vitamin C", "image", "free", "Free Willy", "home", "bar",
    "\u6771\u4eac\u5854", "\u99ac",
)  # fmt: skip


@pytest.fixture(scope="module")
def knowledge_base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    entities = [Entity(f"Q{number}", name) for number, name in enumerate(NAMES)]
    return build_knowledge_base(entities, tmp_path_factory.mktemp("base") / "knowledge_base")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("concatenate a category of CATS", ["cat"]),
        ("hot dogma, hot-dogs", ["hot dog"]),
        ("New York City Hall", ["new york city"]),
        ("New York's old City Hall", ["new york", "city hall"]),
        ("a drawing of the king of spades", ["king of spade"]),
        ("is it The Who?", ["the who"]),
        ("7 cats, 1984, 7 up", ["cat", "7 up"]),
        ("C for vitamin C", ["vitamin c"]),
        ("free images of Free Willy", ["free willy"]),
        ("home bar", ["home", "bar"]),
        ("cat cat", ["cat", "cat"]),
        # inside a sentence of a script without spaces; one of its letters by itself is part of another word
        ("\u4e00\u99ac\u6771\u4eac\u5854\u591c\u666f", ["\u6771 \u4eac \u5854"]),
        ("", []),
    ],
)
def test_mentions_are_the_longest_names_that_mean_something(
    text: str, expected: list[str], knowledge_base: KnowledgeBase
) -> None:
    assert Gazetteer().find([text], knowledge_base) == [expected]


def test_words_that_captions_are_full_of_can_be_chosen(knowledge_base: KnowledgeBase) -> None:
    texts = ["free cat image at home"]

    assert Gazetteer().find(texts, knowledge_base) == [["cat", "home"]]
    assert Gazetteer(ignored=("Cats",)).find(texts, knowledge_base) == [["free", "image", "home"]]


def test_a_text_of_megabytes_is_searched_in_milliseconds(knowledge_base: KnowledgeBase) -> None:
    start = time.perf_counter()
    (found,) = Gazetteer().find(["new york of the king of " * 500_000], knowledge_base)
    assert time.perf_counter() - start < 0.5
    assert set(found) == {"new york"}


@dataclass(frozen=True)
class Said(MentionDetector):
    """Finds what it was told."""

    names: tuple[str, ...]

    def find(self, texts: Sequence[str], knowledge_base: KnowledgeBase) -> list[list[str]]:
        return [list(self.names) for _ in texts]


def test_the_union_has_known_names_once_in_the_order_of_the_detectors(knowledge_base: KnowledgeBase) -> None:
    detectors = (Gazetteer(), Said(("it", "bar", "nobody", "cat", "bar")))

    assert find_all(detectors, ["home cat", ""], knowledge_base) == [
        ["home", "cat", "it", "bar"],
        ["it", "bar", "cat"],
    ]
    assert find_all((), ["cat"], knowledge_base) == [[]]


@pytest.mark.parametrize(
    ("text", "said", "expected"),
    [
        ("in New York City", ("new york",), ["new york city"]),
        ("in New York City, New York", ("new york",), ["new york city", "new york"]),
        ("New York City New York City", ("new york",), ["new york city"]),
        ("New York, hot dog", ("new york city",), ["new york", "hot dog", "new york city"]),
        ("vitamin C", ("c",), ["vitamin c"]),
        ("New York City Hall", ("city hall",), ["new york city", "city hall"]),
    ],
)
def test_the_longest_name_wins_among_detectors_too(
    text: str, said: tuple[str, ...], expected: list[str], knowledge_base: KnowledgeBase
) -> None:
    assert find_all((Gazetteer(), Said(said)), [text], knowledge_base) == [expected]
    assert set(find_all((Said(said), Gazetteer()), [text], knowledge_base)[0]) == set(expected)


def test_a_detector_is_sent_to_other_processes_with_its_settings(knowledge_base: KnowledgeBase) -> None:
    detector = pickle.loads(pickle.dumps(Gazetteer(ignored=("cat",))))

    assert detector == Gazetteer(ignored=("cat",))
    assert "cat" in repr(detector)
    assert detector.find(["free cat"], knowledge_base) == [["free"]]
