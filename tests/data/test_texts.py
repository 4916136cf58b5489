from collections import Counter
from random import Random

import pytest

from mofi_lightning.data.schema import Row
from mofi_lightning.data.texts import Label, TextSampling
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


@pytest.mark.parametrize("parts", [(0.5, 0.5, 0.5), (-0.5, 1.0, 0.5)])
def test_what_are_no_probabilities_is_refused(parts):
    with pytest.raises(InputError, match="sum to 1"):
        TextSampling(*parts)
