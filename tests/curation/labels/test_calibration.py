from pathlib import Path

import numpy as np
import pytest

from mofi_lightning.curation.labels.calibration import (
    ScoreHistogram,
    estimated_precision,
    ordinals,
    threshold_of_precision,
)
from mofi_lightning.types import InputError


def histogram(scores: object) -> ScoreHistogram:
    made = ScoreHistogram()
    made.add(scores)  # type: ignore[arg-type]
    return made


def drawn(seed: int, count: int = 5000) -> np.ndarray:
    """Scores of many magnitudes and both signs, some of them equal."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, 3, count) * 10.0 ** random.integers(-3, 3, count)
    scores[::7] = random.integers(-3, 4, len(scores[::7]))
    return scores.astype(np.float32)


def test_ordinals_are_in_the_order_of_the_scores() -> None:
    scores = np.concatenate([drawn(0), np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38], dtype=np.float32)])

    found = ordinals(scores)

    assert found.dtype == np.uint32
    order = np.argsort(scores, kind="stable")
    np.testing.assert_array_equal(np.diff(scores[order]) > 0, np.diff(found[order].astype(np.int64)) > 0)
    assert (np.diff(found[order].astype(np.int64)) >= 0).all()


def test_edges_lie_below_their_scores_by_at_most_a_2_15th() -> None:
    scores = np.unique(drawn(1))
    for score in scores[::50]:
        (edge,) = histogram([score]).edges

        assert edge <= score
        assert score - edge <= 2.0**-15 * abs(score)


def test_counts_from_an_edge_are_exact() -> None:
    scores = drawn(2)
    found = histogram(scores)

    assert len(found) == len(scores) == found.counts.sum()
    assert (np.diff(found.edges) > 0).all()
    assert found.count_from(found.edges).tolist() == [(scores >= edge).sum() for edge in found.edges]
    assert found.count_from(-1e9) == len(scores)
    assert found.count_from(1e9) == 0


def test_parts_add_up_whatever_their_number_and_order() -> None:
    scores = drawn(3)
    whole = histogram(scores)
    parts = np.array_split(np.random.default_rng(4).permutation(scores), 300)
    added, summed = ScoreHistogram(), ScoreHistogram()
    for part in parts:
        added.add(part)
        summed = summed + histogram(part)

    for found in (added, summed):
        np.testing.assert_array_equal(found.edges, whole.edges)
        np.testing.assert_array_equal(found.counts, whole.counts)


def test_a_sum_leaves_its_terms_as_they_were() -> None:
    one, other = histogram([1, 2]), histogram([2])

    total = one + other
    total.add([5])

    assert (len(one), len(other), len(total)) == (2, 1, 4)


@pytest.mark.parametrize("keep", [1e-9, 0.01, 0.37, 0.5, 0.999, 1.0])
def test_the_threshold_of_a_share_leaves_that_share(keep: float) -> None:
    scores = drawn(5)
    found = histogram(scores)

    threshold = found.threshold_of_share(keep)

    assert np.float32(threshold) == threshold
    wanted = max(1, round(keep * len(scores)))
    left = (scores >= threshold).sum()
    assert left == found.count_from(threshold)
    # no higher threshold would do: without the lowest bin that is left there are too few
    lowest = found.counts[found.edges == np.float32(threshold)].item()
    assert left - lowest < wanted <= left


def test_equal_scores_stay_or_go_together() -> None:
    found = histogram([1, 1, 1, 0])

    assert found.threshold_of_share(0.25) == 1
    assert found.count_from(1) == 3


def test_a_saved_histogram_is_read_back(tmp_path: Path) -> None:
    found = histogram(drawn(6))
    found.save(tmp_path / "scores.npz")

    read = ScoreHistogram.load(tmp_path / "scores.npz")

    np.testing.assert_array_equal(read.edges, found.edges)
    np.testing.assert_array_equal(read.counts, found.counts)
    assert [file.name for file in tmp_path.iterdir()] == ["scores.npz"]


def test_bins_of_a_picture_count_every_score() -> None:
    scores = drawn(7)
    edges, counts = histogram(scores).bins(20)
    expected, _ = np.histogram(histogram(scores).edges, edges, weights=histogram(scores).counts)

    assert len(edges) == 21
    assert counts.tolist() == expected.astype(int).tolist()
    given, clipped = histogram([-9, 0.5, 1.5, 9]).bins([0, 1, 2])
    assert given.tolist() == [0, 1, 2]
    assert clipped.tolist() == [2, 2]


def test_bins_of_equal_or_no_scores_are_no_error() -> None:
    assert histogram([2, 2]).bins(3)[1].sum() == 2
    assert ScoreHistogram().bins(3)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_named(score: float) -> None:
    with pytest.raises(InputError, match=f"a label has score {score}"):
        ScoreHistogram().add([1.0, score])


def mixture(
    seed: int, wrong: float, count: int, distance: float
) -> tuple[np.ndarray, np.ndarray, ScoreHistogram, ScoreHistogram]:
    """Scores of labels, which are correct, and the histograms of labels and decoys.

    Wrong labels and decoys score as the best of 1 to 4 candidates, log P(entity | text) included.
    """
    random = np.random.default_rng(seed)

    def best() -> np.ndarray:
        candidates = random.normal(0, 1, (count, 4)) + np.log(random.dirichlet(np.ones(4), count))
        absent = np.arange(4) >= random.integers(1, 5, count)[:, None]
        return np.where(absent, -np.inf, candidates).max(1)

    correct = random.random(count) >= wrong
    scores = np.where(correct, random.normal(distance, 1.2, count), best()).astype(np.float32)
    return scores, correct, histogram(scores), histogram(best())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wrong", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("distance", [1.5, 3.0])
@pytest.mark.parametrize("precision", [0.8, 0.9, 0.95])
def test_labels_from_the_threshold_have_the_target_precision(
    seed: int, wrong: float, distance: float, precision: float
) -> None:
    scores, correct, labels, decoys = mixture(seed, wrong, 20_000, distance)
    threshold = threshold_of_precision(labels, decoys, precision)
    left = scores >= threshold

    attained = correct[left].mean()
    everything = correct.mean()

    assert estimated_precision(labels, decoys, threshold) >= precision
    assert attained >= precision - 0.02
    if precision > everything + 0.02:
        assert attained <= precision + 0.02
        # recall: nothing is cut that need not be
        best = np.cumsum(correct[np.argsort(-scores)]) / np.arange(1, len(scores) + 1)
        most = np.flatnonzero(best >= precision + 0.02).max() + 1
        assert left.sum() >= 0.9 * most


@pytest.mark.parametrize("wrong", [0.2, 0.5])
def test_the_estimate_follows_the_real_precision(wrong: float) -> None:
    scores, correct, labels, decoys = mixture(9, wrong, 50_000, 2.5)
    for threshold in np.quantile(scores, [0.0, 0.2, 0.5, 0.8, 0.95]):
        real = correct[scores >= threshold].mean()

        assert estimated_precision(labels, decoys, float(threshold)) == pytest.approx(real, abs=0.02)


def test_the_estimate_is_that_of_the_formula() -> None:
    labels, decoys = histogram([-1, 1, 2, 3, 4, 5, 6, 7]), histogram([-2, 0, 0, 3])

    # lower quartile of the decoys: 0; below lie 1/8 of the labels and 1/4 of the decoys, so pi0 = 1/2
    assert estimated_precision(labels, decoys, 3) == pytest.approx(1 - 0.5 * (2 / 4) / (5 / 8))
    assert estimated_precision(labels, decoys, 100) == 0


def test_labels_no_better_than_decoys_reach_no_precision() -> None:
    random = np.random.default_rng(0)
    labels, decoys = histogram(random.normal(size=5000)), histogram(random.normal(size=5000))

    with pytest.raises(
        InputError, match=r"precision 0\.9 is out of reach; the best .* is an estimated 0\.\d+"
    ):
        threshold_of_precision(labels, decoys, 0.9)


def test_a_single_label_above_all_decoys_is_no_proof() -> None:
    scores = np.linspace(-3, 3, 1000)

    with pytest.raises(InputError, match="out of reach"):
        threshold_of_precision(histogram([*scores, 50]), histogram(scores), 0.5)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="keep needs labels"):
        ScoreHistogram().threshold_of_share(0.5)
    with pytest.raises(InputError, match="precision needs labels"):
        threshold_of_precision(ScoreHistogram(), histogram([1]), 0.9)
    with pytest.raises(InputError, match="a scorer"):
        estimated_precision(histogram([1]), ScoreHistogram(), 0.9)
