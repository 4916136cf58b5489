import math

import pytest

from mofi_lightning.curation.knowledge_base import KnowledgeBase
from mofi_lightning.curation.linking import Linker
from mofi_lightning.sources.base import Entity

ENTITIES = [
    Entity("Q0", "dog face", ("pet", "puppy", "dog"), "animals"),
    Entity("Q1", "dog", ("pet", "animal"), "animals"),
    Entity("Q2", "cat", ("pet", "kitten"), "animals"),
    Entity("Q3", "framed picture", ("picture", "art"), "objects"),
    Entity("Q4", "jaguar", ("big cat",), "spotted animal of the Americas"),
    Entity("Q5", "Jaguar", ("car",), "maker of cars in Coventry"),
]
BASE = KnowledgeBase.from_entities(ENTITIES)
CORPUS = [f"a picture of {name}" for name in ("owl", "pizza", "tree", "sun", "moon", "rain", "snow", "dog")]


def linked(text: str, corpus: list[str] = CORPUS) -> dict[str, float]:
    return {ENTITIES[row].id: p for row, p in Linker(BASE, [*corpus, text]).link(text).items()}


def best(text: str) -> str:
    return next(iter(linked(text)))


def test_a_name_beats_the_same_word_as_a_tag() -> None:
    assert best("dog") == "Q1"
    assert best("dog face") == "Q0"


def test_tags_shared_by_several_entities_are_resolved_together() -> None:
    assert best("pet, puppy") == "Q0"
    assert best("pet, kitten") == "Q2"


def test_a_homonym_is_resolved_by_the_words_of_the_descriptions() -> None:
    assert best("jaguar, an animal of the Americas") == "Q4"
    assert best("Jaguar built in Coventry") == "Q5"


def test_words_of_most_texts_name_nothing() -> None:
    assert best("a picture of a cat") == "Q2"
    assert linked("a picture of a bicycle").get("Q3", 0.0) < 0.5


def test_what_stays_open_keeps_its_candidates() -> None:
    found = linked("jaguar")

    assert set(found) == {"Q4", "Q5"}
    assert found["Q4"] == pytest.approx(found["Q5"])


def test_a_text_without_mention_has_no_candidate() -> None:
    assert linked("IMG_0001.jpg") == linked("") == {}


def test_candidates_are_few_and_likeliest_first() -> None:
    found = list(Linker(BASE, CORPUS, candidates=2).link("pet").values())

    assert len(found) == 2
    assert found == sorted(found, reverse=True)
    assert sum(linked("pet").values()) < 1


def test_probabilities_are_those_of_the_formula() -> None:
    text = "pet puppy"
    corpus = [*CORPUS, "pet", text]
    share = {"pet": 3 / 11, "puppy": 2 / 11}  # of 10 texts and one with every word

    bags = [
        {"dog", "face", "pet", "puppy", "animal"},
        {"dog", "pet", "animal"},
        {"cat", "pet", "kitten", "animal"},
    ]
    scores = {}
    for row, bag in enumerate(bags):
        number_of_aliases = len({ENTITIES[row].name, *ENTITIES[row].aliases})
        mentions = {"pet": {"puppy"}, "puppy": {"pet"}}
        scores[row] = max(
            math.log(0.5 / number_of_aliases / share[mention])
            + sum(math.log(1 + 1 / len(bag) / share[other]) for other in others if other in bag)
            for mention, others in mentions.items()
            if mention in bag
        )
    total = 1 + sum(math.exp(score) for score in scores.values())
    expected = {row: math.exp(score) / total for row, score in scores.items()}

    assert Linker(BASE, corpus, least=0.0).link(text) == pytest.approx(expected)


def test_a_text_of_megabytes_is_linked_in_linear_time() -> None:
    text = "pet puppy with a dog face " * 8_000

    assert best(text) == "Q0"
