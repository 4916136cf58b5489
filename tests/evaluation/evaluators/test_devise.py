import math

import pytest
import torch
from tests.evaluation.evaluators.given import Given, Labels

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.evaluators import DeViSEZeroShot
from mofi_lightning.types import InputError

BASIS = torch.eye(6).tolist()
NAMES = {"a": "ant", "b": "bee", "c": "cat", "d": "dog", "e": "eel"}
TEXTS = {name: BASIS[row] for row, name in enumerate(NAMES.values())}
KINDS = {
    "a": ["insect"], "b": ["insect"], "c": ["pet"], "d": ["pet"], "e": ["fish"],
    "insect": ["animal"], "pet": ["animal"], "fish": ["animal"],
}  # fmt: skip
# columns: ant, bee, cat, dog, eel
IMAGES = torch.tensor(
    [
        [9.0, 8, 1, 2, 3, 0],  # an ant, then a bee
        [8, 1, 2, 9, 3, 0],  # an ant, second to a dog
        [1, 2, 9, 3, 8, 0],  # a dog, third; cats come first, then eels
        [1, 9, 3, 8, 2, 0],  # a dog, second to a bee
    ]
)


def _set(entities: str = "aadd", **about) -> EvaluationSet:
    rows = range(len(entities))
    about = {"names": NAMES, **about}
    return EvaluationSet(
        "set", [str(row) for row in rows], [str(row).encode() for row in rows], list(entities), **about
    )


def _measure(data: EvaluationSet, embedder: Given | None = None, **settings):
    settings = {"hits": (1, 2, 5), "precision": (1, 2, 3), **settings}
    return DeViSEZeroShot(**settings)(embedder or Given(IMAGES, None, Labels(TEXTS, 6)), data)


def test_flat_hits_and_hierarchical_precision_are_those_of_hand():
    found = _measure(_set(hierarchy=KINDS))
    assert found.scores["hit@1"].values.tolist() == [1, 0, 0, 0]
    assert found.scores["hit@2"].values.tolist() == [1, 1, 0, 1]
    assert torch.equal(found.scores["hp@1"].values, found.scores["hit@1"].values)
    # of two: ants and bees for an ant, dogs and cats for a dog; of three everything counts
    assert found.scores["hp@2"].values.tolist() == [1, 0.5, 0.5, 0.5]
    assert found.scores["hp@3"].values.tolist() == [1] * 4
    assert found.scores["hp@2"].clusters.tolist() == [0, 0, 3, 3]
    assert found.notes == ("hit@k and hp@k are left out at k = 5: there are 5 candidates",)


def test_unseen_images_compete_among_the_unseen_and_among_all():
    found = _measure(_set(seen=frozenset("abc"), hierarchy=KINDS))
    assert found.scores["hit@1"].values.tolist() == [1, 0, 0, 0]
    for name, want in {
        "unseen_hit@1": [0, 1],
        "generalized_hit@1": [0, 0],
        "generalized_hit@2": [0, 1],
    }.items():
        assert found.scores[name].values[2:].tolist() == want
        assert found.scores[name].values[:2].isnan().all()
    # of the unseen only dog and eel are candidates, so that k = 2 says nothing
    assert found.scores["unseen_hp@1"].values[2:].tolist() == [0, 1]
    assert "unseen_hit@2" not in found.scores and "unseen_hp@2" not in found.scores
    assert "unseen_hit@k and hp@k are left out at k = 2, 3, 5: there are 2 candidates" in found.notes
    assert found.scores["generalized_hp@2"].values[2:].tolist() == [0.5, 0.5]


def test_a_class_without_a_vector_is_no_candidate_and_its_images_are_wrong():
    # from the first image on: unlike every class, most like the bee; an eel at cosine 0 would be the first
    images = torch.tensor([[-9.0, -1, -8, -7, 0, 0], [0, 0, 0, 0, 9, 0]])
    known = {name: vector for name, vector in TEXTS.items() if name != "eel"}
    data = _set("be", hierarchy=KINDS, seen=frozenset("ab"))
    found = _measure(data, Given(images, None, Labels(known, 6)), hits=(1, 2, 4), precision=(1, 2, 3))
    assert found.scores["hit@1"].values.tolist() == [1, 0]
    assert found.scores["hp@1"].values.tolist() == [1, 0]
    # no ring of an ant's or a bee's holds the eel: bee, then a dog
    assert found.scores["hp@2"].values.tolist() == [0.5, 0]
    assert "hit@4" not in found.scores
    assert "hit@k and hp@k are left out at k = 4: there are 4 candidates" in found.notes
    assert (
        "hit@k: 1 of 5 candidates have no vector and do not compete; their 1 images are wrong" in found.notes
    )
    assert found.scores["generalized_hit@1"].values.tolist()[1] == 0
    fewer = {name: vector for name, vector in known.items() if name != "dog"}
    found = _measure(data, Given(images, None, Labels(fewer, 6)))
    assert "no unseen_hit@k: fewer than two candidates have a vector" in found.notes
    assert not [name for name in found.scores if name.startswith("unseen")]


@pytest.mark.parametrize(
    ("seen", "note"),
    [
        ("abcd", "no image is of an unseen class"),
        ("abce", "one class only is unseen"),
        ("xyz", "none of the classes is a seen one"),
    ],
)
def test_odd_sets_of_seen_classes_are_told(seen, note):
    found = _measure(_set(seen=frozenset(seen)))
    assert note in found.notes
    assert ("unseen_hit@1" in found.scores) == (seen == "xyz")


def test_without_a_hierarchy_there_is_no_hierarchical_precision():
    assert {name for name in _measure(_set()).metrics()} == {"hit@1", "hit@2"}


def test_a_class_outside_the_hierarchy_is_named_and_nothing_is_guessed():
    found = _measure(_set(hierarchy={child: above for child, above in KINDS.items() if child != "e"}))
    assert set(found.metrics()) == {"hit@1", "hit@2"}
    assert any(
        "no hp@k: 1 of 5 classes are not in the hierarchy, the first 'e'" in note for note in found.notes
    )


def test_images_whose_class_is_connected_to_too_few_are_left_out_and_counted():
    found = _measure(_set("aade", hierarchy={**KINDS, "e": ["fish"], "fish": []}))
    assert found.scores["hp@2"].values.isnan().tolist() == [False, False, False, True]
    assert "hp@2 leaves out 1 images whose class has fewer than 2 connected to it" in found.notes


def test_a_label_space_is_asked_before_a_text_tower_and_that_where_there_is_none():
    swapped = {f"a {name}": BASIS[4 - row] for row, name in enumerate(NAMES.values())}
    both = _measure(_set(), Given(IMAGES, swapped, Labels(TEXTS, 6)), templates=["a {}"])
    assert both.metrics()["hit@1"] == 1 / 4
    tower = _measure(_set(), Given(IMAGES, {f"a {n}": v for n, v in TEXTS.items()}), templates=["a {}"])
    assert tower.metrics() == both.metrics()


def test_undecodable_images_count_nowhere():
    images = IMAGES.clone()
    images[1] = math.nan
    found = _measure(_set(hierarchy=KINDS), Given(images, None, Labels(TEXTS, 6)))
    assert found.scores["hp@2"].values[[0, 2, 3]].tolist() == [1, 0.5, 0.5]
    assert found.scores["hp@2"].values[1].isnan()


@pytest.mark.parametrize(
    ("embedder", "data", "why"),
    [
        (Given(IMAGES), _set(), "neither label space nor text tower"),
        (Given(IMAGES, TEXTS), _set(names={}), "no names"),
        (Given(IMAGES, TEXTS), _set("aa", names={"a": "ant"}), "one class only"),
    ],
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(embedder, data, why):
    found = _measure(data, embedder)
    assert why in found.skipped and not found.metrics()


def test_a_k_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="0 results"):
        DeViSEZeroShot(hits=(1, 0))
