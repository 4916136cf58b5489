from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mofi_lightning.curation.labels import class_ids as module
from mofi_lightning.curation.labels.class_ids import assign_class_ids
from mofi_lightning.types import InputError


def lookup(identifiers: Sequence[str]) -> Callable[[np.ndarray], list[str]]:
    """As `KnowledgeBase.ids`."""
    return lambda rows: [identifiers[row] for row in rows.tolist()]


def vocabulary(kb_rows: np.ndarray, identifiers: Sequence[str], previous: Sequence[str] = ()) -> list[str]:
    """The identifiers by class id."""
    return [identifiers[row] if row >= 0 else previous[number] for number, row in enumerate(kb_rows.tolist())]


def test_the_first_build_sorts_entities_with_enough_images_by_id() -> None:
    identifiers = ["Q9", "Q10", "Q2", "Q1"]

    kb_rows, class_of = assign_class_ids(np.array([5, 7, 4, 5]), 5, lookup(identifiers))

    assert kb_rows.dtype == class_of.dtype == np.int32
    assert vocabulary(kb_rows, identifiers) == ["Q1", "Q10", "Q9"]
    assert class_of.tolist() == [2, 1, -1, 0]


def test_earlier_classes_keep_their_numbers_and_new_ones_follow() -> None:
    identifiers = ["b", "z", "a", "c", "d"]
    previous = ["z", "gone", "b"]

    kb_rows, class_of = assign_class_ids(np.array([0, 9, 5, 4, 6]), 5, lookup(identifiers), previous)

    assert kb_rows.tolist() == [1, -1, 0, 2, 4]
    assert class_of.tolist() == [2, 0, 3, -1, 4]


def test_no_entity_with_enough_images_gives_no_classes() -> None:
    kb_rows, class_of = assign_class_ids(np.array([1, 2]), 5, lookup(["a", "b"]))

    assert len(kb_rows) == 0
    assert class_of.tolist() == [-1, -1]


@pytest.mark.parametrize("seed", range(20))
def test_extending_never_renumbers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)
    random = np.random.default_rng(seed)
    everything = [f"Q{number}" for number in random.choice(1000, 60, replace=False)]
    previous: list[str] = []
    for _ in range(4):
        # another knowledge base each time, and other counts
        identifiers = list(random.permutation(everything)[: random.integers(20, 60)])
        counts = random.integers(0, 9, len(identifiers))

        kb_rows, class_of = assign_class_ids(counts, 5, lookup(identifiers), previous or None)

        extended = vocabulary(kb_rows, identifiers, previous)
        assert extended[: len(previous)] == previous
        added = extended[len(previous) :]
        assert added == sorted(
            name
            for name, count in zip(identifiers, counts, strict=True)
            if count >= 5 and name not in previous
        )
        assert len(set(extended)) == len(extended)
        known = [extended.index(name) if name in extended else -1 for name in identifiers]
        assert class_of.tolist() == known

        again, same = assign_class_ids(counts, 5, lookup(identifiers), extended)
        assert vocabulary(again, identifiers, extended) == extended
        assert same.tolist() == class_of.tolist()
        previous = extended


def test_the_order_of_the_knowledge_base_does_not_matter() -> None:
    identifiers = [f"Q{number}" for number in range(30)]
    counts = np.arange(30)
    order = np.random.default_rng(0).permutation(30)
    shuffled = [identifiers[row] for row in order]

    one, _ = assign_class_ids(counts, 5, lookup(identifiers))
    other, _ = assign_class_ids(counts[order], 5, lookup(shuffled))

    assert vocabulary(one, identifiers) == vocabulary(other, shuffled)


def test_a_vocabulary_with_an_entity_twice_is_refused() -> None:
    with pytest.raises(InputError, match="entity 'a' comes twice"):
        assign_class_ids(np.array([9]), 5, lookup(["a"]), ["a", "b", "a"])
