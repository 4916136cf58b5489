from pathlib import Path

import numpy as np
import pytest

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.knowledge_bases.names import words
from mofi_lightning.curation.texts.word_counts import WordCounts
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

TEXTS = ["a red dog, dog dog", "Dogs and cats", "", "nothing known", "red red red"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    entities = [Entity("Q1", "dog", ("red dog",), "an animal"), Entity("Q2", "cat")]
    return build_knowledge_base(entities, tmp_path_factory.mktemp("base") / "kb")


def test_a_word_counts_once_in_every_text_that_has_it(base: KnowledgeBase) -> None:
    counts = WordCounts.count(TEXTS, base)

    for word in ("dog", "red", "cat", "animal"):
        (number,) = base.word_numbers([word])
        assert counts.counts[number] == sum(word in words(text) for text in TEXTS)
    assert counts.texts == 5


def test_counts_of_parts_add_up_to_those_of_the_whole(base: KnowledgeBase) -> None:
    whole = WordCounts.count(TEXTS * 7_000, base)  # more than are looked up at once
    parts = WordCounts.count(iter(TEXTS * 3_000), base) + WordCounts.count(TEXTS * 4_000, base)

    assert parts.texts == whole.texts == 35_000
    np.testing.assert_array_equal(parts.counts, whole.counts)
    np.testing.assert_array_equal(whole.counts, WordCounts.count(TEXTS, base).counts * 7_000)


def test_shares_are_those_with_one_more_text_that_has_every_word(base: KnowledgeBase) -> None:
    counts = WordCounts.count(TEXTS, base)
    numbers = base.word_numbers(["dog", "animal", "unheard"])

    assert numbers[2] == -1
    np.testing.assert_allclose(counts.shares(numbers), [3 / 6, 1 / 6, 1 / 6])
    assert counts.shares([]).shape == (0,)


def test_without_texts_no_word_is_rare(base: KnowledgeBase) -> None:
    np.testing.assert_array_equal(WordCounts.count([], base).shares([0, -1]), [1.0, 1.0])


def test_counts_come_back_from_their_file(base: KnowledgeBase, tmp_path: Path) -> None:
    counts = WordCounts.count(TEXTS, base)
    counts.save(tmp_path / "counts")
    found = WordCounts.load(tmp_path / "counts")

    assert found.texts == counts.texts
    np.testing.assert_array_equal(found.counts, counts.counts)
    assert [file.name for file in tmp_path.iterdir()] == ["counts"]


@pytest.mark.parametrize("content", [None, b"", b"PK no archive", b"\x80\x04."])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "counts.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"word counts .*counts\.npz .* count the texts anew"):
        WordCounts.load(path)


def test_a_byte_that_changed_is_noticed_wherever_it_is(base: KnowledgeBase, tmp_path: Path) -> None:
    counts = WordCounts.count(TEXTS, base)
    counts.save(tmp_path / "counts")
    content = (tmp_path / "counts").read_bytes()
    noticed = 0
    for place in range(len(content)):
        for mask in (1, 4, 6, 255):  # among them, other methods of compression
            damaged = bytearray(content)
            damaged[place] ^= mask
            (tmp_path / "counts").write_bytes(damaged)
            try:
                found = WordCounts.load(tmp_path / "counts")
            except InputError:
                noticed += 1
            else:  # a byte that means nothing, such as the time
                assert (found.texts, found.counts.tolist()) == (counts.texts, counts.counts.tolist())
    assert noticed > len(content)


def test_counts_of_different_knowledge_bases_do_not_add_up(base: KnowledgeBase) -> None:
    counts = WordCounts.count(TEXTS, base)
    with pytest.raises(InputError, match="do not add up"):
        counts + WordCounts(counts.counts[1:], 1)
