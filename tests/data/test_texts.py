import sys
import unicodedata
from collections import Counter
from random import Random

import pytest

from mofi_lightning.data.schema import Row
from mofi_lightning.data.texts import Label, TextSampling, clean
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError

VOCABULARY = EntityVocabulary.from_columns(
    ["a", "b", "c"], ["ant", "bee", "cat"], ["insect", "flies", ""], [1, 1, 1]
)


def frequencies(sampling: TextSampling, row: Row, draws: int = 20_000) -> dict[Label, float]:
    generator = Random(0)
    counts = Counter(sampling.draw(row, VOCABULARY, generator) for _ in range(draws))
    return {label: count / draws for label, count in counts.items()}


def test_texts_follow_their_probabilities_and_belong_to_the_drawn_entity():
    row = Row("k", b"", "alt", (0, 1), (0.9, 0.1))
    expected = {
        Label(0, "alt"): 0.25,
        Label(1, "alt"): 0.25,
        Label(0, "ant"): 0.15,
        Label(1, "bee"): 0.15,
        Label(0, "ant, insect"): 0.1,
        Label(1, "bee, flies"): 0.1,
    }
    assert frequencies(TextSampling(0.5, 0.3, 0.2), row) == pytest.approx(expected, abs=0.015)


def test_an_empty_alt_text_leaves_its_share_to_the_entity():
    row = Row("k", b"", "", (1,), (0.9,))
    expected = {Label(1, "bee"): 0.6, Label(1, "bee, flies"): 0.4}
    assert frequencies(TextSampling(0.5, 0.3, 0.2), row) == pytest.approx(expected, abs=0.015)


def test_an_empty_alt_text_still_gets_a_text_where_only_alt_texts_are_drawn():
    row = Row("k", b"", "", (1,), (0.9,))
    assert set(frequencies(TextSampling(1, 0, 0), row, 100)) == {Label(1, "bee, flies")}


def test_a_row_without_entity_uses_its_alt_text():
    assert frequencies(TextSampling(0, 0.5, 0.5), Row("k", b"", "alt"), 100) == {Label(-1, "alt"): 1.0}


def test_an_entity_without_description_uses_its_name():
    row = Row("k", b"", "alt", (2,), (0.9,))
    assert frequencies(TextSampling(0, 0, 1), row, 100) == {Label(2, "cat"): 1.0}


@pytest.mark.parametrize("alt_text", [" ", "\x00", "\n\t \u3000\x7f"])
def test_an_alt_text_that_shows_nothing_is_empty(alt_text):
    with_entity, without = Row("k", b"", alt_text, (1,), (0.9,)), Row("k", b"", alt_text)
    assert set(frequencies(TextSampling(1, 0, 0), with_entity, 100)) == {Label(1, "bee, flies")}
    assert frequencies(TextSampling(1, 0, 0), without, 10) == {Label(-1, ""): 1.0}


def test_every_text_is_cleaned():
    vocabulary = EntityVocabulary.from_columns(["a"], [" fire\tant "], ["red\r\ninsect"], [1])
    row = Row("k", b"", "a \x00b", (0,), (0.9,))
    generator = Random(0)
    drawn = {TextSampling().draw(row, vocabulary, generator).text for _ in range(100)}
    assert drawn == {"a b", "fire ant", "fire ant, red insect"}
    assert TextSampling().draw(row._replace(entities=()), vocabulary, generator) == Label(-1, "a b")


def test_cleaning_replaces_control_characters_surrogates_and_runs_of_white_space():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        gap = unicodedata.category(character) in ("Cc", "Cs") or character.isspace()
        assert clean(f"a{character}{character} b") == ("a b" if gap else f"a{character}{character} b"), code
    assert clean("") == clean(" \x00\ud800 ") == ""
    assert clean("\n a\x85b ") == "a b"


@pytest.mark.parametrize(
    "text",
    ["a photo of a cat.", "日本語のテキスト", "👩\u200d👩\u200d👧 family", "Women\u2019s \u201cshoes\u201d"],
)
def test_clean_texts_stay_as_they_are(text):
    assert clean(text) == text


@pytest.mark.parametrize("parts", [(0.5, 0.5, 0.5), (-0.5, 1.0, 0.5)])
def test_what_are_no_probabilities_is_refused(parts):
    with pytest.raises(InputError, match="sum to 1"):
        TextSampling(*parts)
