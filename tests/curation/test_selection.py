from itertools import pairwise

import numpy as np
import pytest

from mofi_lightning.curation.selection import Candidates, Criteria, best, frequent, highest, select
from mofi_lightning.types import InputError


def drawn(seed: int) -> Candidates:
    """Candidates with many equal scores; an image names an entity once, in no order."""
    random = np.random.default_rng(seed)
    named = np.array([(row, e) for row in range(40) for e in range(15) if random.random() < 0.2]).reshape(
        -1, 2
    )
    random.shuffle(named)
    links = random.integers(1, 5, len(named)).astype(np.float32) / 5
    similarities = random.integers(-2, 3, len(named)).astype(np.float32)
    return Candidates(named[:, 0], named[:, 1], links, similarities)


def naive(c: Candidates, criteria: Criteria) -> set[tuple[int, int]]:
    """The same selection with sorted lists and loops."""
    labels = list(zip(c.scores.tolist(), c.rows.tolist(), c.entities.tolist(), strict=True))
    kept = []
    for row in range(40):
        of_row = sorted((label for label in labels if label[1] == row), key=lambda x: (-x[0], x[2]))
        kept += of_row[: criteria.top_k]
    if criteria.threshold is not None:
        kept = [label for label in kept if label[0] >= criteria.threshold]
    if criteria.keep is not None:
        kept = sorted(kept, key=lambda x: (-x[0], x[1], x[2]))[: round(criteria.keep * len(kept))]
    counts = {e: sum(label[2] == e for label in kept) for e in range(15)}
    return {(row, entity) for _, row, entity in kept if counts[entity] >= criteria.min_images}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(),
        Criteria(top_k=2, min_images=3),
        Criteria(top_k=3, keep=0.65, min_images=2),
        Criteria(top_k=9, threshold=0.1, min_images=2),
        Criteria(keep=1.0),
        Criteria(threshold=100.0),
    ],
)
def test_selection_equals_a_naive_one(seed: int, criteria: Criteria) -> None:
    candidates = drawn(seed)
    *_, (_, kept) = select(candidates, criteria)

    assert kept.dtype == bool
    selected = zip(candidates.rows[kept].tolist(), candidates.entities[kept].tolist(), strict=True)
    assert set(selected) == naive(candidates, criteria)


def test_every_step_keeps_a_part_of_the_one_before() -> None:
    masks = [mask for _, mask in select(drawn(0), Criteria(top_k=2, keep=0.5, min_images=2))]

    assert len(masks) == 3
    assert all((later <= earlier).all() for earlier, later in pairwise(masks))
    assert masks[-1].sum() < masks[0].sum()


def test_selection_does_not_depend_on_the_order_of_the_candidates() -> None:
    c = drawn(1)
    order = np.random.default_rng(2).permutation(len(c.rows))
    assert c.similarities is not None
    shuffled = Candidates(c.rows[order], c.entities[order], c.links[order], c.similarities[order])
    criteria = Criteria(top_k=2, keep=0.4, min_images=2)

    *_, (_, one) = select(c, criteria)
    *_, (_, other) = select(shuffled, criteria)

    assert (one[order] == other).all()


def test_scores_add_text_and_image_and_do_without_an_image() -> None:
    rows, links = np.array([0, 0]), np.array([1.0, 0.5], dtype=np.float32)

    assert Candidates(rows, np.array([0, 1]), links).scores.tolist() == pytest.approx([0, np.log(0.5)])
    checked = Candidates(rows, np.array([0, 1]), links, np.array([0.2, 3], dtype=np.float32))
    assert checked.scores.tolist() == pytest.approx([0.2, 3 + np.log(0.5)])
    *_, (_, kept) = select(checked, Criteria())
    assert kept.tolist() == [False, True]


def test_no_candidates_are_no_error() -> None:
    none, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)

    assert (
        not len(best(none, none, scores, 1)) + len(highest(none, none, scores, 0.5)) + len(frequent(none, 2))
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 0}, "top_k 0 is out of range"),
        ({"min_images": 0}, "min_images 0 is out of range"),
        ({"keep": 0.0}, r"keep 0\.0 is out of range"),
        ({"keep": 1.5}, r"keep 1\.5 is out of range"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"threshold": 1.0, "keep": 0.5}, "exclude each other"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Criteria(**values)  # type: ignore[arg-type]
