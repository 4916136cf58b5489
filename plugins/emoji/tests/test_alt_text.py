"""The noise of the alt-texts has the shares that the README states."""

from collections import Counter
from itertools import permutations
from math import sqrt
from random import Random

import pytest

from mofi_emoji.alt_text import GENERIC, TEMPLATES, clean_alt_text, noisy_alt_text
from mofi_emoji.catalogue import Emoji

ENTITIES = [Emoji(f"U+{n}", f"thing {n}", (f"a{n}", f"b{n}", f"c{n}"), "objects") for n in range(25)]
CALLS = 6_000


def assert_share(count: int, total: int, expected: float) -> None:
    """Within 4 standard errors of a binomial share."""
    assert abs(count / total - expected) < 4 * sqrt(expected * (1 - expected) / total), (
        count,
        total,
        expected,
    )


@pytest.fixture(scope="module")
def texts() -> list[tuple[Emoji, str]]:
    random = Random(1)
    drawn = [ENTITIES[n % len(ENTITIES)] for n in range(CALLS)]
    return [(emoji, noisy_alt_text(emoji, ENTITIES, random)) for emoji in drawn]


@pytest.fixture(scope="module")
def meanings() -> dict[str, tuple[Emoji, str, str]]:
    """Every text that names something -> entity, template, whether by name or tags."""
    found = {}
    for emoji in ENTITIES:
        worded = {emoji.name: "name"} | {", ".join(two): "tags" for two in permutations(emoji.tags, 2)}
        for text, kind in worded.items():
            for template in TEMPLATES:
                found[template.format(text)] = (emoji, template, kind)
    return found


def test_a_tenth_of_the_texts_names_nothing(texts, meanings):
    unnamed = [text for _, text in texts if text not in meanings]
    assert_share(sum(text in GENERIC for text in unnamed), CALLS, 0.05)
    assert_share(sum(text.startswith("IMG_") for text in unnamed), CALLS, 0.03)
    assert_share(unnamed.count(""), CALLS, 0.02)
    assert all(text in ("", *GENERIC) or text.startswith("IMG_") for text in unnamed)


def test_three_in_ten_name_another_entity_drawn_uniformly(texts, meanings):
    named = [(drawn, meanings[text][0]) for drawn, text in texts if text in meanings]
    wrong = [(drawn, about) for drawn, about in named if drawn is not about]
    assert_share(len(wrong), len(named), 0.30)
    for count in Counter(about.id for _, about in wrong).values():
        assert_share(count, len(wrong), 1 / len(ENTITIES))
    assert len({about.id for _, about in wrong}) == len(ENTITIES)


def test_four_in_ten_use_two_tags_and_the_templates_are_equally_frequent(texts, meanings):
    worded = [meanings[text][1:] for _, text in texts if text in meanings]
    assert_share(sum(kind == "tags" for _, kind in worded), len(worded), 0.40)
    for template, count in Counter(template for template, _ in worded).items():
        assert_share(count, len(worded), 1 / len(TEMPLATES))
        assert template in TEMPLATES
    assert len(TEMPLATES) == 6


@pytest.mark.parametrize("tags", [(), ("only",)])
def test_an_emoji_with_less_than_two_tags_uses_what_it_has(tags):
    emoji = Emoji("U+1", "thing", tags, "objects")
    texts = {noisy_alt_text(emoji, [emoji], random) for random in map(Random, range(300))}
    expected = {template.format(text) for text in ("thing", *tags) for template in TEMPLATES}
    assert {text for text in texts if text not in ("", *GENERIC) and "IMG_" not in text} == expected


def test_a_clean_text_names_what_is_drawn():
    texts = {clean_alt_text(ENTITIES[3], random) for random in map(Random, range(300))}
    assert texts == {template.format("thing 3") for template in TEMPLATES}
