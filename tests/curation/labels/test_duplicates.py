import time

import numpy as np
import pytest
from numpy.typing import NDArray

from mofi_lightning.curation.labels import duplicates as module
from mofi_lightning.curation.labels.duplicates import duplicates

Hashes = NDArray[np.uint64]


def naive(hashes: Hashes, distance: int) -> list[bool]:
    """Every hash against every earlier one that stays."""
    kept: list[int] = []
    marked = []
    for value in hashes.tolist():
        marked.append(any((value ^ other).bit_count() <= distance for other in kept))
        if not marked[-1]:
            kept.append(value)
    return marked


def flipped(random: np.random.Generator, hashes: Hashes, most: int) -> Hashes:
    """The hashes with up to `most` random bits turned over."""
    changed = hashes.copy()
    for _ in range(most):
        bits = np.uint64(1) << random.integers(0, 64, len(hashes), dtype=np.uint64)
        changed = np.where(random.random(len(hashes)) < 0.7, changed ^ bits, changed)
    return changed


def groups(seed: int, count: int, centres: int, most: int) -> Hashes:
    """Hashes at up to `most` bits from one of some centres: chains, copies and crowds."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, 2**64, centres, dtype=np.uint64)
    return flipped(random, drawn[random.integers(0, centres, count)], most)


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("count", "centres", "most"), [(400, 300, 4), (400, 40, 5), (300, 1, 6), (300, 3, 2)]
)
def test_marks_equal_naive_ones(distance: int, count: int, centres: int, most: int) -> None:
    hashes = groups(distance, count, centres, most)

    marked = duplicates(hashes, distance)

    assert marked.dtype == bool
    assert marked.tolist() == naive(hashes, distance)


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_every_place_of_the_differing_bits_is_found(distance: int) -> None:
    random = np.random.default_rng(0)
    for value in random.integers(0, 2**64, 300, dtype=np.uint64):
        places = random.choice(64, distance + 1, replace=False).astype(np.uint64)
        near = value ^ np.bitwise_or.reduce(np.uint64(1) << places[1:])
        far = value ^ np.bitwise_or.reduce(np.uint64(1) << places)

        assert duplicates(np.array([value, near]), distance).tolist() == [False, True]
        assert duplicates(np.array([value, far]), distance).tolist() == [False, False]


def test_a_duplicate_of_a_duplicate_is_none_by_itself() -> None:
    hashes = np.array([0b0000, 0b0011, 0b1111, 0b0011], dtype=np.uint64)

    assert duplicates(hashes, 2).tolist() == [False, True, False, True]


@pytest.mark.parametrize("distance", [0, 2])
@pytest.mark.parametrize("count", [0, 1])
def test_a_corpus_of_no_or_one_image_has_no_duplicates(distance: int, count: int) -> None:
    assert duplicates(np.zeros(count, dtype=np.uint64), distance).tolist() == [False] * count


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_a_crowd_is_halved_until_its_pairs_are_few(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.concatenate([groups(7, 500, 1, 2), groups(8, 300, 2, 7), groups(9, 200, 200, 0)])
    np.random.default_rng(9).shuffle(hashes)
    near_pairs = module._near_pairs
    sizes = []

    def counted(hashes: Hashes, distance: int, limit: int) -> NDArray[np.uint64] | None:
        sizes.append(len(hashes))
        return near_pairs(hashes, distance, limit=len(hashes))

    monkeypatch.setattr(module, "_near_pairs", counted)

    assert duplicates(hashes, distance).tolist() == naive(hashes, distance)
    assert len(sizes) > 2


def test_many_equal_and_many_near_hashes_take_little_time() -> None:
    random = np.random.default_rng(0)
    blank = np.zeros(200_000, dtype=np.uint64)
    crowd = flipped(random, np.full(20_000, 0x0123_4567_89AB_CDEF, dtype=np.uint64), 3)
    others = random.integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes = random.permutation(np.concatenate([blank, crowd, others]))

    started = time.perf_counter()
    marked = duplicates(hashes, 2)

    assert time.perf_counter() - started < 20  # comparing all pairs takes minutes
    assert not marked[np.isin(hashes, others)].any()
    kept = hashes[~marked]
    in_crowd = kept[np.isin(kept, crowd)]
    assert (kept == 0).sum() == 1
    differing = np.bitwise_count(in_crowd[:, None] ^ in_crowd)
    assert differing[~np.eye(len(in_crowd), dtype=bool)].min() > 2  # those that stay are pairwise far apart
    assert np.bitwise_count(crowd[:, None] ^ in_crowd).min(1).max() <= 2  # and near all that go


@pytest.mark.parametrize("distance", [-1, 4])
def test_distances_out_of_range_are_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=f"distance {distance}"):
        duplicates(np.zeros(2, dtype=np.uint64), distance)
