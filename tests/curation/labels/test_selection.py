import numpy as np
import pytest

from mofi_lightning.curation.labels.selection import Candidates, Criteria, Labels, rank
from mofi_lightning.types import InputError


def drawn(seed: int) -> Candidates:
    """Candidates with many equal scores; an image names an entity once, in no order."""
    random = np.random.default_rng(seed)
    named = np.array([(row, e) for row in range(40) for e in range(15) if random.random() < 0.2], np.int32)
    random.shuffle(named)
    links = random.integers(1, 5, len(named)).astype(np.float32) / 5
    similarities = random.integers(-2, 3, len(named)).astype(np.float32)
    return Candidates(named[:, 0], named[:, 1], links, similarities)


def naive(candidates: Candidates, top_k: int) -> list[tuple[int, int, float]]:
    """The same ranking with sorted lists and loops."""
    labels = list(
        zip(candidates.rows.tolist(), candidates.entities.tolist(), candidates.scores.tolist(), strict=True)
    )
    kept = []
    for row in range(40):
        kept += sorted((label for label in labels if label[0] == row), key=lambda x: (-x[2], x[1]))[:top_k]
    return kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_ranking_equals_a_naive_one(seed: int, top_k: int) -> None:
    candidates = drawn(seed)

    labels = rank(candidates, top_k)

    assert [column.dtype for column in labels] == [np.int32, np.int32, np.float32]
    assert list(zip(*(column.tolist() for column in labels), strict=True)) == naive(candidates, top_k)


def test_ranking_does_not_depend_on_the_order_of_the_candidates() -> None:
    c = drawn(1)
    order = np.random.default_rng(2).permutation(len(c.rows))
    assert c.similarities is not None
    shuffled = Candidates(c.rows[order], c.entities[order], c.links[order], c.similarities[order])

    for one, other in zip(rank(c, 2), rank(shuffled, 2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scores_add_text_and_image_and_do_without_an_image() -> None:
    rows, links = np.array([0, 0]), np.array([1.0, 0.5], dtype=np.float32)

    assert Candidates(rows, np.array([0, 1]), links).scores.tolist() == pytest.approx([0, np.log(0.5)])
    checked = Candidates(rows, np.array([0, 1]), links, np.array([0.2, 3], dtype=np.float32))
    assert checked.scores.tolist() == pytest.approx([0.2, 3 + np.log(0.5)])
    assert rank(checked, 1).entities.tolist() == [1]


def test_labels_are_narrowed_by_a_mask() -> None:
    labels = Labels(np.array([0, 1, 1]), np.array([4, 4, 5]), np.array([0.5, 2, 1], dtype=np.float32))

    narrowed = labels.where(labels.scores >= 1)

    assert [column.tolist() for column in narrowed] == [[1, 1], [4, 5], [2, 1]]


def test_no_candidates_are_no_error() -> None:
    none, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)

    assert not any(map(len, rank(Candidates(none, none, scores), 1)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 0}, "top_k 0 is out of range"),
        ({"min_images": 0}, "min_images 0 is out of range"),
        ({"keep": 0.0}, r"keep 0\.0 is out of range"),
        ({"keep": 1.5}, r"keep 1\.5 is out of range"),
        ({"precision": 1.0}, r"precision 1\.0 is out of range"),
        ({"precision": float("nan")}, "precision nan is out of range"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"threshold": 1.0, "keep": 0.5}, r"threshold 1\.0 and keep 0\.5 exclude each other"),
        ({"threshold": 0.0, "precision": 0.9}, r"threshold 0\.0 and precision 0\.9 exclude each other"),
        ({"max_images": 4}, "max_images 4 is below min_images 5"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Criteria(**values)  # type: ignore[arg-type]
