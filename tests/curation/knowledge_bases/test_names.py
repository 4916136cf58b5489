import time
from itertools import product
from random import Random
from unicodedata import normalize

import pytest

from mofi_lightning.curation.knowledge_bases import names
from mofi_lightning.curation.knowledge_bases.names import LONGEST_TEXT, normalise, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dog", "dog"),
        ("  a\tDOG,\nface!", "a dog face"),
        ("St. Bernard-dog_face", "st bernard dog face"),
        ("the dog's bone", "the dog bone"),
        ("the dog\u2019s bone", "the dog bone"),
        ("the dog`s bone", "the dog bone"),
        ("the dogs' bones", "the dog bone"),
        ("O'Neill", "oneill"),
        ("rock 'n' roll", "rock n roll"),
        ("\uff24\uff2f\uff27", "dog"),  # full width
        ("gro\u00df", "gross"),
        ("\ufb01sh", "fish"),  # a ligature
        ("x\u00b2", "x2"),
        ("7 dwarfs", "7 dwarf"),
        ("soft\u00adhyphen, zero\u200bwidth, emoji \u2764\ufe0f!", "softhyphen zero width emoji"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("", ""),
        ("!?'", ""),
    ],
)
def test_spelling_variants_have_one_form(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Beyonc\u00e9 in S\u00e3o Paulo", "beyonce in sao paulo"),
        ("\u0141\u00f3d\u017a, Malm\u00f8, \u0130stanbul, \u00c6gir", "lodz malmo istanbul aegir"),
        ("x\u0302", "x"),  # no letter of its own exists for it
        ("\u0391\u03b8\u03ae\u03bd\u03b1", "\u03b1\u03b8\u03b7\u03bd\u03b1"),  # Greek
        ("\u0401\u043b\u043a\u0430", "\u0435\u043b\u043a\u0430"),  # Cyrillic
        ("\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),  # Hebrew with points
        ("\u0645\u064f\u062d\u0645\u0651\u062f", "\u0645\u062d\u0645\u062f"),  # Arabic with points
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),  # Devanagari
        ("\u304c", "\u304c"),  # a voiced kana is another letter
        ("\uff76\uff9e", "\u30ac"),  # half width
        ("\uc11c\uc6b8 \ud0c0\uc6cc", "\uc11c\uc6b8 \ud0c0\uc6cc"),  # Korean has spaces
    ],
)
def test_accents_go_and_marks_that_are_letters_stay(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_letters_of_scripts_without_spaces_are_words_with_their_marks() -> None:
    assert words("\u6771\u4eac\u30bf\u30ef\u30fcTokyo Tower") == [
        *"\u6771\u4eac\u30bf\u30ef\u30fc",
        "tokyo",
        "tower",
    ]
    assert words("\u0e27\u0e31\u0e14") == [
        "\u0e27\u0e31",
        "\u0e14",
    ]  # Thai: a vowel sign stays with its letter


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("dog", "dogs"),
        ("berry", "berries"),
        ("cookie", "cookies"),
        ("pie", "pies"),
        ("box", "boxes"),
        ("axe", "axes"),
        ("match", "matches"),
        ("headache", "headaches"),
        ("brush", "brushes"),
        ("glass", "glasses"),
        ("house", "houses"),
        ("prize", "prizes"),
        ("bus", "buses"),
        ("house", "houses"),
        ("iris", "irises"),
        ("noise", "noises"),
        ("gas", "gases"),
        ("lens", "lenses"),
        ("hero", "heroes"),
        ("potato", "potatoes"),
        ("shoe", "shoes"),
        ("toe", "toes"),
        ("horse", "horses"),
        ("case", "cases"),
    ],
)
def test_singular_and_plural_meet(singular: str, plural: str) -> None:
    assert normalise(singular) == normalise(plural)


@pytest.mark.parametrize("word", ["glass", "bus", "paris", "gas", "is"])
def test_words_that_only_look_like_plurals_keep_their_ending(word: str) -> None:
    assert words(word) == [word]


def test_rules_for_plurals_bring_no_two_singular_words_together() -> None:
    singular = (
        "base bass bus case dense den gas goose hero horse house lens nose phase rose shoe tense ten use"
    )
    assert len(set(words(singular))) == len(singular.split())


def test_every_word_of_the_letters_that_the_rules_know_keeps_its_form() -> None:
    for letters in product("aeiuoshcxz", repeat=5):
        (form,) = words("".join(letters))
        assert words(form) == [form], letters


def test_plain_text_takes_a_faster_way_to_the_same_words() -> None:
    random = Random(1)
    characters = [chr(code) for code in range(128)] + list("abcesxz's' " * 12)
    for _ in range(3_000):
        text = "".join(random.choices(characters, k=random.randint(0, 40)))
        # one letter outside ASCII sends the whole text the general way
        assert [*words(text), "\u03c9"] == words(f"{text} \u03c9"), repr(text)


def test_the_form_of_a_normalised_text_is_itself() -> None:
    random = Random(2)
    characters = [chr(code) for code in range(32, 0x3000)] + list("abcesxz's' " * 500)
    for _ in range(2_000):
        text = normalise("".join(random.choices(characters, k=20)))
        assert normalise(text) == text == normalize("NFKC", text), repr(text)


def test_only_the_whole_words_at_the_start_of_a_very_long_text_are_read() -> None:
    text = "lanternfish " * LONGEST_TEXT

    assert words(text) == ["lanternfish"] * (LONGEST_TEXT // len("lanternfish "))
    assert len(words("\u00e9 " * LONGEST_TEXT)) == LONGEST_TEXT // 2 - 1


def test_a_very_long_text_without_spaces_where_it_is_cut_is_read_as_far() -> None:
    assert words(" " * (LONGEST_TEXT + 1)) == []
    assert words("cat" + " " * LONGEST_TEXT + "dog") == ["cat"]
    assert words("Photo " + "\u6771\u4eac" * LONGEST_TEXT) == [
        "photo",
        *"\u6771\u4eac" * (LONGEST_TEXT // 2 - 3),
    ]


@pytest.mark.parametrize("piece", ["a", "'", "a'", "\u0301", "\u0e34", "\u6771", "\ufdfa", "\u0939\u094d"])
def test_hostile_texts_of_megabytes_cost_milliseconds(piece: str) -> None:
    text = piece * 5_000_000
    start = time.perf_counter()
    words(text)
    assert time.perf_counter() - start < 0.5


def test_a_flood_of_new_words_does_not_fill_the_memory() -> None:
    for number in range(70_000):
        words(f"w{number}")
    assert len(names._STEMS) <= names._Stems.most
    assert words("dogs") == ["dog"]
