from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from mofi_lightning.curation.labels.filters import (
    CorpusFilter,
    Facts,
    Filter,
    ImageSize,
    NearDuplicates,
    PairFilter,
    TextLength,
    apply,
    apply_to_corpus,
)
from mofi_lightning.curation.labels.selection import Mask
from mofi_lightning.types import InputError


def facts(sizes: list[tuple[int, int]], lengths: list[int] | None = None) -> Facts:
    """Facts of images of some sizes (width, height) and of texts of some lengths."""
    widths, heights = np.array(sizes, dtype=np.int32).reshape(-1, 2).T
    texts = np.array(lengths or [9] * len(sizes), dtype=np.int32)
    return Facts(widths, heights, np.full(len(sizes), 1000, dtype=np.int64), texts)


@dataclass(frozen=True)
class Odd(CorpusFilter):
    """Removes every second image that is left."""

    name: ClassVar[str] = "every second"

    def keep(self, hashes: Any) -> Mask:
        return np.arange(len(hashes)) % 2 == 0


@dataclass(frozen=True)
class Wrong(PairFilter):
    """Returns numbers instead of a mask."""

    name: ClassVar[str] = "wrong"

    def keep(self, facts: Facts) -> Mask:
        return np.ones(len(facts))  # type: ignore[return-value]


def test_images_are_kept_by_their_shorter_side_and_shape() -> None:
    sizes = [(64, 64), (63, 500), (64, 128), (128, 64), (64, 129), (129, 64), (4000, 3000)]

    kept = ImageSize(min_side=64, max_aspect=2).keep(facts(sizes))

    assert kept.tolist() == [True, False, True, True, False, False, True]


def test_images_without_a_readable_header_are_left_to_the_decoder() -> None:
    assert ImageSize().keep(facts([(0, 0), (1, 1)])).tolist() == [True, False]


def test_texts_are_kept_by_their_length() -> None:
    kept = TextLength(min_characters=2, max_characters=4).keep(facts([(9, 9)] * 6, [0, 1, 2, 4, 5, 10**7]))

    assert kept.tolist() == [False, False, True, True, False, False]


def test_facts_are_read_from_headers_and_texts(drawings: list[bytes]) -> None:
    found = Facts.of([drawings[0], None, b"nothing"], ["北京", None, "a" * 100])

    assert found.width.tolist() == [32, 0, 0]
    assert found.height.tolist() == [32, 0, 0]
    assert found.image_bytes.tolist() == [len(drawings[0]), 0, 7]
    assert found.text_length.tolist() == [2, 0, 100]
    assert [getattr(found, n).dtype for n in ("width", "height", "image_bytes", "text_length")] == [
        np.int32,
        np.int32,
        np.int64,
        np.int32,
    ]


def test_the_first_filter_that_removes_a_pair_names_it() -> None:
    found = facts([(300, 300), (10, 10), (300, 300), (10, 10)], [9, 9, 0, 0])
    filters = [TextLength(), NearDuplicates(), ImageSize()]

    assert apply(filters, found) == [None, "image size", "text length", "text length"]
    assert apply(filters[::-1], found) == [None, "image size", "text length", "image size"]
    assert apply([], found) == [None] * 4
    assert apply(filters, facts([])) == []


def test_near_duplicates_leave_the_first_of_each_group() -> None:
    hashes = np.array([0b11, 0b10, 2**63, 0b11, 0b111111], dtype=np.uint64)

    assert NearDuplicates(distance=0).keep(hashes).tolist() == [True, True, True, False, True]
    assert NearDuplicates(distance=1).keep(hashes).tolist() == [True, False, True, False, True]


def test_a_corpus_filter_sees_what_those_before_it_have_left() -> None:
    hashes = np.array([5, 5, 6, 7], dtype=np.uint64)

    removed = apply_to_corpus([NearDuplicates(distance=0), ImageSize(), Odd()], hashes)

    assert {name: mask.tolist() for name, mask in removed.items()} == {
        "near-duplicates": [False, True, False, False],
        "every second": [False, False, True, False],
    }


def test_what_a_filter_returns_is_checked() -> None:
    with pytest.raises(
        InputError, match=r"filter 'wrong' returned float64 \[2\] for 2 rows; its keep must return"
    ):
        apply([Wrong()], facts([(9, 9), (9, 9)]))


def test_filters_are_listed_on_the_command_line() -> None:
    parser = ArgumentParser()
    parser.add_argument("--filters", type=list[Filter])
    listed = "[{class_path: ImageSize, init_args: {min_side: 64}}, NearDuplicates]"

    given = parser.instantiate(parser.parse_args(["--filters", listed]))

    assert given.filters == [ImageSize(min_side=64), NearDuplicates()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageSize(min_side=0), "min_side 0 is out of range"),
        (lambda: ImageSize(max_aspect=0.5), r"max_aspect 0\.5 is out of range"),
        (lambda: ImageSize(max_aspect=float("nan")), "max_aspect nan is out of range"),
        (lambda: TextLength(min_characters=-1), "min_characters -1 is out of range"),
        (
            lambda: TextLength(min_characters=5, max_characters=4),
            "max_characters 4 is below min_characters 5",
        ),
        (lambda: NearDuplicates(distance=4), "distance 4 is out of range; give 0 to 3"),
    ],
)
def test_values_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
