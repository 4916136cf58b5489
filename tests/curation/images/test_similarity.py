from pathlib import Path

import numpy as np
import pytest
import torch

from mofi_lightning.curation.images.similarity import (
    EntitySums,
    Moments,
    agreement_of_part,
    combine,
    entity_statistics,
    one_thread,
    posterior,
    standardise,
)
from mofi_lightning.types import InputError


def normal(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape) + 0.3
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def standardised(cosines: np.ndarray) -> np.ndarray:
    return (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)


def test_statistics_from_moments_are_those_of_all_cosines() -> None:
    images, texts = normal(1, 50, 8), normal(2, 7, 8)
    cosines = images.astype(np.float64) @ texts.T.astype(np.float64)

    mean, deviation = entity_statistics(Moments.of(images).background, texts)

    assert mean.dtype == deviation.dtype == np.float32
    assert mean == pytest.approx(cosines.mean(axis=0), abs=1e-6)
    assert deviation == pytest.approx(cosines.std(axis=0), abs=1e-6)
    found = standardise((images @ texts.T)[:, 3], mean[3], deviation[3])
    assert found == pytest.approx(standardised(cosines)[:, 3], abs=1e-5)


def test_statistics_of_many_entities_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = normal(1, 50, 8), normal(2, 23, 8)
    background = Moments.of(images).background
    whole = entity_statistics(background, texts)
    monkeypatch.setattr("mofi_lightning.curation.images.similarity._BLOCK", 5)

    assert np.array_equal(entity_statistics(background, texts), whole)


def test_moments_of_parts_add_up_and_are_stored_exactly(tmp_path: Path) -> None:
    images = normal(1, 50, 8)

    total = Moments.of(images[:20]) + Moments.of(images[20:20]) + Moments.of(images[20:])
    total.save(tmp_path / "moments.partial")
    stored = Moments.load(tmp_path / "moments.partial")

    assert total.count == 50
    assert total.background.mean == pytest.approx(images.mean(axis=0), abs=1e-6)
    assert total.background.covariance == pytest.approx(np.cov(images.T, bias=True), abs=1e-6)
    assert stored.count == 50
    assert np.array_equal(stored.sum, total.sum)
    assert np.array_equal(stored.outer, total.outer)


def test_moments_of_no_image_are_no_background() -> None:
    with pytest.raises(InputError, match="no image could be embedded"):
        _ = Moments.of(np.empty((0, 8), dtype=np.float32)).background


def test_a_text_close_to_every_image_has_no_advantage() -> None:
    images = normal(1, 100, 16)
    hub = images.mean(axis=0) / np.linalg.norm(images.mean(axis=0))
    texts = np.stack([hub, images[7]])
    cosines = images @ texts.T

    hub_score, own_score = standardise(cosines[7], *entity_statistics(Moments.of(images).background, texts))

    assert cosines[:, 0].mean() > cosines[:, 1].mean()
    assert own_score > hub_score


# ten images in parts of 4 and 6; image 2 is unusable, entity 3 has one usable image
ROWS = [np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 3, 5, 5])]
ENTITIES = [np.array([0, 1, 0, 0, 2]), np.array([0, 1, 2, 0, 3, 1])]
WEIGHTS = [np.array(w, dtype=np.float32) for w in ([0.9, 0.1, 0.5, 1, 0.3], [0.2, 0.7, 0.3, 1, 0.5, 0.4])]


def corpus() -> list[np.ndarray]:
    images = normal(3, 10, 6).astype(np.float16)
    images[2] = np.nan
    return [images[:4], images[4:]]


def naive_agreement(image: int, candidate: int) -> float:
    """In fp64, image by image: `image` in the place of that of `candidate`, counted over both parts."""
    images = np.concatenate(corpus()).astype(np.float64)
    rows = np.concatenate([ROWS[0], ROWS[1] + 4])
    entities, weights = np.concatenate(ENTITIES), np.concatenate(WEIGHTS)
    if np.isnan(images[rows[candidate]]).any():
        return np.nan
    mates = [
        n
        for n in range(len(rows))
        if n != candidate and entities[n] == entities[candidate] and not np.isnan(images[rows[n]]).any()
    ]
    if not mates:
        return np.nan
    known = np.delete(images, 2, axis=0)
    others = sum(weights[n] * (images[rows[n]] - known.mean(axis=0)) for n in mates)
    others /= np.linalg.norm(others)
    variances, directions = np.linalg.eigh(np.cov(known.T, bias=True))
    white = (known - known.mean(axis=0)) @ directions / np.sqrt(variances) @ directions.T @ others
    assert white.mean() == pytest.approx(0, abs=1e-9)
    assert white.std() == pytest.approx(1)
    return float(white[image - (image > 2)])


def test_agreement_over_parts_is_that_of_the_whole_corpus() -> None:
    parts = corpus()
    background = Moments.of(np.delete(np.concatenate(parts), 2, axis=0)).background
    total = EntitySums(np.zeros((4, 6), dtype=np.float32))
    for images, rows, entities, weights in zip(parts, ROWS, ENTITIES, WEIGHTS, strict=True):
        total.accumulate(background, images, rows, entities, weights)
    partners = [np.array([1, 3, -1, 0]), np.array([5, 4, -1, -1, 0, 1])]

    start, candidate = 0, 0
    for images, rows, entities, weights, others in zip(parts, ROWS, ENTITIES, WEIGHTS, partners, strict=True):
        own, decoy = agreement_of_part(total, background, images, rows, entities, weights, others)
        expected = [naive_agreement(start + row, candidate + n) for n, row in enumerate(rows)]
        wrong = [
            np.nan if others[row] < 0 else naive_agreement(start + others[row], candidate + n)
            for n, row in enumerate(rows)
        ]
        assert own == pytest.approx(expected, abs=1e-4, nan_ok=True)
        assert decoy == pytest.approx(wrong, abs=1e-4, nan_ok=True)
        assert own.dtype == decoy.dtype == np.float32
        start, candidate = start + len(images), candidate + len(rows)
    assert np.isfinite(own).sum() == 5  # of the second part, all but entity 3's only image
    assert list(total.counts) == [4, 3, 2, 1]


def test_sums_do_not_depend_on_blocks_nor_on_memory_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = normal(1, 300, 8).astype(np.float16)
    rng = np.random.default_rng(2)
    rows, entities = rng.integers(300, size=2000), rng.integers(40, size=2000)
    weights = rng.random(2000).astype(np.float32) + np.float32(0.1)
    expected = np.zeros((40, 8))
    background = Moments.of(images).background
    np.add.at(expected, entities, weights[:, None] * (images[rows].astype(np.float64) - background.mean))
    stored = np.lib.format.open_memmap(tmp_path / "sums.npy", "w+", np.float32, (40, 8))
    monkeypatch.setattr("mofi_lightning.curation.images.similarity._BLOCK", 64)

    total = EntitySums(stored)
    total.accumulate(background, images, rows, entities, weights)

    assert np.load(tmp_path / "sums.npy", mmap_mode="r") == pytest.approx(expected, abs=1e-4)
    assert np.array_equal(total.counts, np.bincount(entities, minlength=40))


def test_the_image_that_shows_something_else_agrees_least() -> None:
    images = normal(4, 200, 16)
    images[:5] = images[0] + 0.02 * normal(5, 5, 16)
    images[:5] /= np.linalg.norm(images[:5], axis=1, keepdims=True)
    rows, weights = np.array([0, 1, 2, 3, 4, 150]), np.ones(6, dtype=np.float32)
    entities = np.zeros(6, dtype=np.int64)
    total = EntitySums(np.zeros((1, 16), dtype=np.float32))
    background = Moments.of(images).background
    total.accumulate(background, images, rows, entities, weights)

    own, decoy = agreement_of_part(
        total, background, images, rows, entities, weights, np.roll(np.arange(200), 60)
    )

    assert own[:5].min() > 2 > own[5]
    assert decoy.max() < 2


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.filterwarnings("error")
def test_images_that_are_all_the_same_agree_no_more_than_images_in_general(count: int) -> None:
    images = np.repeat(normal(1, 1, 16), count, axis=0)
    background = Moments.of(images).background
    rows, weights = np.array([0, count - 1]), np.ones(2, dtype=np.float32)
    entities = np.zeros(2, dtype=np.int64)
    total = EntitySums(np.zeros((1, 16), dtype=np.float32))
    total.accumulate(background, images, rows, entities, weights)

    assert background.whiten(images) == pytest.approx(np.zeros((count, 16)), abs=1e-6)
    own, _ = agreement_of_part(total, background, images, rows, entities, weights, np.full(count, -1))
    assert own == pytest.approx([0, 0], abs=1e-6)


def test_a_candidate_without_agreement_is_judged_by_its_text_alone() -> None:
    z, agreement = np.array([1, 2, 3], dtype=np.float32), np.array([3, np.nan, -1], dtype=np.float32)

    assert combine(z, agreement) == pytest.approx([2.5, 2, 0])


def test_posterior_weighs_candidates_against_each_other_and_against_none() -> None:
    rows = np.array([0, 0, 3, 7, 7])
    links = np.array([0.6, 0.3, 1, 0.5, 0.5], dtype=np.float32)
    similarity = np.array([1, 2, -3, 4, -100], dtype=np.float32)
    scores = links * np.exp(similarity)
    none = np.e

    found = posterior(rows, links, similarity)

    first, last = scores[:2].sum() + none, scores[3:].sum() + none
    expected = scores / np.array([first, first, scores[2] + none, last, last])
    assert found == pytest.approx(np.maximum(expected, 1e-6), rel=1e-5)
    assert posterior(rows[:0], links[:0], similarity[:0]).shape == (0,)


def test_one_thread_is_kept_only_inside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        _ = 1 / 0
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
