import dataclasses

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from tests.evaluation.evaluators.given import Given, Labels

from mofi_lightning.encoders.label_space import LabelSpace, LabelSpaceConfig
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.evaluators import ZeroShot
from mofi_lightning.types import InputError

NAN = float("nan")
BASIS = torch.eye(6).tolist()
NAMES = {"a": "ant", "b": "bee", "c": "cat", "d": "dog", "e": "eel"}
TEXTS = {f"a {name}": BASIS[row] for row, name in enumerate(NAMES.values())}


def _set(entities: str, **about) -> EvaluationSet:
    rows = range(len(entities))
    about = {"names": NAMES, **about}
    return EvaluationSet(
        "set", [str(row) for row in rows], [str(row).encode() for row in rows], list(entities), **about
    )


# two ants of three, no bee of one, and the one cat are right; the dog cannot be decoded
IMAGES = torch.tensor(
    [
        [9.0, 1, 2, 0, 0, 0],
        [9, 8, 0, 0, 0, 0],
        [1, 2, 9, 3, 4, 5],
        [9, 1, 2, 3, 4, 0],
        [0, 0, 1, 0, 0, 0],
        [NAN] * 6,
    ]
)


def test_accuracies_are_those_of_hand_and_undecodable_images_count_in_none():
    found = ZeroShot(["a {}"])(Given(IMAGES, TEXTS), _set("aaabcd"))
    assert found.scores["acc1"].values[:5].tolist() == [1, 1, 0, 0, 1]
    assert found.scores["acc1"].values[5].isnan()
    assert found.scores["acc1"].clusters[:5].tolist() == [0, 0, 0, 1, 2]
    assert found.metrics()["acc1"] == 3 / 5
    assert found.metrics()["mean_per_class_recall"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    want = balanced_accuracy_score(list("aaabc"), list("aacac"))
    assert found.metrics()["mean_per_class_recall"] == pytest.approx(want)
    assert found.notes == (
        "acc5 says nothing of 5 classes",
        "mean_per_class_recall is over the 3 of 5 classes with images",
    )


def test_the_datas_prompts_win_over_the_evaluators():
    embedder = Given(IMAGES, {f"my {name}": BASIS[0] for name in NAMES.values()})
    ZeroShot("openai_imagenet_80")(embedder, _set("aaabcd", templates=["my {}"]))
    assert embedder.asked == [f"my {name}" for name in NAMES.values()]


def test_the_prompts_are_recorded_and_lists_are_read_when_made():
    assert ZeroShot("openai_simple_7").config["templates"][0] == "itap of a {}."
    with pytest.raises(InputError, match="give one of entity_5"):
        ZeroShot("openai")


def test_classes_of_one_name_are_named_and_never_right():
    found = ZeroShot(["a {}"])(Given(IMAGES, TEXTS), _set("aaabcd", names={**NAMES, "b": "ant"}))
    assert found.metrics()["acc1"] == 1 / 5
    assert found.notes[0] == (
        "2 of 5 classes share a text and cannot be told apart, so that none of their 4 images is right at 1: "
        "'ant' (a, b)"
    )


@pytest.mark.parametrize("name", ["", " ", None])
def test_a_class_without_a_name_goes_by_its_id_and_is_named(name):
    names = {entity: text for entity, text in NAMES.items() if entity != "b"} | (
        {} if name is None else {"b": name}
    )
    embedder = Given(IMAGES, {**TEXTS, "a b": BASIS[1]})
    found = ZeroShot(["a {}"])(embedder, _set("aaabcd", names=names))
    assert "1 of 5 classes have no name and go by their id: b" in found.notes
    assert found.metrics() == ZeroShot(["a {}"])(Given(IMAGES, TEXTS), _set("aaabcd")).metrics()


def test_of_six_classes_acc5_is_the_share_that_is_not_last():
    texts = {**TEXTS, "a fox": BASIS[5]}
    found = ZeroShot(["a {}"])(Given(IMAGES, texts), _set("faabcd", names={**NAMES, "f": "fox"}))
    # the fox is last of the first image, the ant of the third
    assert found.scores["acc5"].values[:5].tolist() == [0, 1, 0, 1, 1]


def test_five_classes_and_fewer_have_no_acc5():
    names = {"a": "ant", "b": "bee"}
    found = ZeroShot(["a {}"])(Given(IMAGES, TEXTS), _set("aaab", names=names))
    assert set(found.metrics()) == {"acc1", "mean_per_class_recall"}
    assert found.notes == ("acc5 says nothing of 2 classes",)


@pytest.mark.parametrize(
    ("embedder", "data", "why"),
    [
        (Given(IMAGES, TEXTS), _set("aab", names={}), "the data has no names"),
        (Given(IMAGES, TEXTS), _set("aaa", names={"a": "ant"}), "the data has one class only"),
        (Given(IMAGES), _set("aab"), "the model has no text tower"),
        (Given(IMAGES, None, LabelSpace(6, LabelSpaceConfig(6))), _set("aab"), "which text model made them"),
    ],
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(embedder, data, why):
    found = ZeroShot()(embedder, data)
    assert why in found.skipped and not found.metrics()


def test_broken_embeddings_are_refused():
    broken = IMAGES.clone()
    broken[1, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        ZeroShot(["a {}"])(Given(broken, TEXTS), _set("aaab"))
    with pytest.raises(InputError, match=r"1 of 5 text embeddings .* not finite, the first of 'a cat'"):
        ZeroShot(["a {}"])(Given(IMAGES, {**TEXTS, "a cat": [NAN] * 6}), _set("aaab"))


def test_a_label_space_is_asked_for_the_texts_its_vectors_are_of():
    texts = {"ant": BASIS[0], "bee, it buzzes": BASIS[1], "cat": BASIS[2], "dog": BASIS[3]}
    data = _set("aaabcd", descriptions={"b": "it buzzes"})
    space = Labels(texts, 6)
    found = ZeroShot()(Given(IMAGES, None, space), data)
    assert space.asked == ["ant", "bee, it buzzes", "cat", "dog", "eel"]
    assert found.metrics()["acc1"] == 3 / 5
    assert found.metrics()["zero_shot_unknown_classes"] == 1
    assert found.notes[0] == (
        "1 of 5 classes hold no word that the label vectors' model knows; they do not compete, and their 0 "
        "images are wrong: e"
    )
    space.config = dataclasses.replace(space.config, descriptions=False)
    ZeroShot()(Given(IMAGES, None, space), data)
    assert space.asked == list(NAMES.values())


def test_a_class_the_label_space_does_not_know_competes_with_none_and_its_images_are_wrong():
    # the first image is unlike every class, and most like the bee; an unknown cat would be at cosine 0
    texts = {"ant": BASIS[0], "bee": BASIS[1]}
    names = {"a": "ant", "b": "bee", "c": "cat"}
    images = torch.tensor([[-9.0, -1, 0, 0, 0, 0], [9, 1, 0, 0, 0, 0], [0, 0, 9, 0, 0, 0]])
    found = ZeroShot()(Given(images, None, Labels(texts, 6)), _set("bac", names=names))
    assert found.scores["acc1"].values.tolist() == [1, 1, 0]
    assert "and their 1 images are wrong: c" in found.notes[0]
    alone = ZeroShot()(Given(images, None, Labels({"ant": BASIS[0]}, 6)), _set("bac", names=names))
    assert alone.skipped == "1 of 3 classes can be embedded" and not alone.scores


def test_six_classes_of_which_five_are_known_have_no_acc5():
    names = {**NAMES, "f": "fox"}
    known = {name: BASIS[row] for row, name in enumerate(NAMES.values())}
    found = ZeroShot()(Given(IMAGES, None, Labels(known, 6)), _set("aaabcd", names=names))
    assert "acc5" not in found.scores and "acc5 says nothing of 5 classes" in found.notes


def test_a_text_tower_is_asked_before_a_label_space():
    space = Labels({}, 6)
    found = ZeroShot(["a {}"])(Given(IMAGES, TEXTS, space), _set("aaabcd"))
    assert found.metrics() == ZeroShot(["a {}"])(Given(IMAGES, TEXTS), _set("aaabcd")).metrics()
    assert not space.asked
