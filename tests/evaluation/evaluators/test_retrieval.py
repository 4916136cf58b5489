import pytest
import torch
from tests.evaluation.evaluators.given import Given
from torch import Tensor

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.evaluators import KNN, ImageText, Retrieval
from mofi_lightning.evaluation.measures.retrieval import retrieval_average_precision
from mofi_lightning.types import InputError

NAN = float("nan")


def _set(entities: str, **about) -> EvaluationSet:
    rows = range(len(entities))
    files = about.pop("files", [str(row).encode() for row in rows])
    return EvaluationSet("set", [str(row) for row in rows], files, list(entities), **about)


def _at(*angles: float) -> Tensor:
    """Vectors in a plane, in degrees; NaN for an image that cannot be decoded."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_measures_are_those_of_hand_and_undecodable_images_count_in_none():
    # from 0 degrees: b at 10, a at 20, a at 45; the last a cannot be decoded
    found = Retrieval(k=(2,))(Given(_at(0, 10, 20, 45, NAN)), _set("abaaa"))
    assert found.scores["map"].values.tolist() == pytest.approx(
        [(1 / 2 + 2 / 3) / 2, NAN, (1 / 2 + 2 / 3) / 2, (1 + 2 / 3) / 2, NAN], nan_ok=True
    )
    assert found.scores["map@R"].values.tolist() == pytest.approx(
        [1 / 4, NAN, 1 / 4, 1 / 2, NAN], nan_ok=True
    )
    assert found.scores["recall@1"].values.tolist() == pytest.approx([0, NAN, 0, 1, NAN], nan_ok=True)
    assert found.scores["recall@2"].values.tolist() == pytest.approx([1, NAN, 1, 1, NAN], nan_ok=True)
    with_self = found.scores["map_with_self"].values
    assert with_self[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert with_self[1] == 1
    assert found.values == {"queries": 4}
    assert found.notes == (
        "1 of 4 queries have no other image of their entity; only map_with_self counts them "
        "(recall@1 leaves them out, knn_acc1 counts them as wrong)",
    )


def test_each_domain_has_both_protocols_over_all_images():
    vectors = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    data = _set("abcde" * 6, domains=["left"] * 12 + ["right"] * 18)
    found = Retrieval()(Given(vectors), data).metrics()
    labels = data.labels()
    for name, exclude in (("map", True), ("map_with_self", False)):
        values = retrieval_average_precision(vectors, labels, exclude_self=exclude)
        assert found[f"{name}/left"] == pytest.approx(float(values[:12].mean()))
        assert found[f"{name}/right"] == pytest.approx(float(values[12:].mean()))
        assert found[name] == pytest.approx((12 * found[f"{name}/left"] + 18 * found[f"{name}/right"]) / 30)


def test_named_queries_search_the_images_that_are_none():
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    data = _set("abcd" * 10, queries=[0, 1, 2, 3])
    found = Retrieval()(Given(vectors), data)
    labels = data.labels()
    want = retrieval_average_precision(vectors[:4], labels[:4], vectors[4:], labels[4:])
    torch.testing.assert_close(found.scores["map"].values[:4], want, rtol=0, atol=1e-12)
    assert found.scores["map"].values[4:].isnan().all()
    assert found.values == {"queries": 4}
    assert "map_with_self" not in found.metrics()
    with pytest.raises(InputError, match="1 queries and 0 images to search"):
        Retrieval()(Given(_at(1, NAN)), _set("aa", queries=[0]))


def test_copies_are_counted_by_file_and_by_embedding():
    data = _set("aabbb", files=[b"0", b"1", b"1", b"3", b"4"])
    notes = Retrieval(k=())(Given(_at(0, 10, 99, 20, 20)), data).notes
    assert notes == (
        "2 images are the same file as another one of the set; finding copies inflates mAP",
        "4 of 5 images have exactly the embedding of another one; they tie",
    )
    assert Retrieval(k=())(Given(_at(0, 10, 30, 50)), _set("aabb")).notes == ()


def test_neighbours_classify_and_classes_that_none_can_have_are_counted():
    found = KNN(k=(1, 2), temperatures=(0.07,))(Given(_at(0, 1, 30, 31, 60, NAN)), _set("aabbca"))
    assert found.scores["knn_acc1"].values.tolist() == pytest.approx([1, 1, 1, 1, 0, NAN], nan_ok=True)
    assert found.values == pytest.approx({"knn_k1_t0.07": 4 / 5, "knn_k2_t0.07": 4 / 5})
    assert found.notes == (
        "1 of 5 images are of a class that no neighbour can have; knn_acc1 counts them as wrong (recall@1 "
        "leaves out what has no other image of its entity)",
    )


def test_fit_votes_or_else_the_images_that_are_no_queries():
    voters = _set("bba", files=[b"2", b"3", b"4"])
    vectors = _at(0, 60, 1, 2, 61)
    split = KNN(k=(1,))(Given(vectors), _set("ab", fit=voters))
    assert split.scores["knn_acc1"].values.tolist() == [0, 0]
    named = KNN(k=(1,))(Given(vectors), _set("abbba", queries=[0, 1]))
    assert named.scores["knn_acc1"].values.tolist() == pytest.approx([0, 0, NAN, NAN, NAN], nan_ok=True)
    assert KNN()(Given(vectors), _set("a")).skipped


def test_named_queries_alone_are_classified_also_where_the_training_split_votes():
    vectors = _at(0, 60, 1, 2, 61)
    data = _set("ab", queries=[1], fit=_set("aab", files=[b"2", b"3", b"4"]))
    found = KNN(k=(1,))(Given(vectors), data)
    assert found.scores["knn_acc1"].values.tolist() == pytest.approx([NAN, 1], nan_ok=True)
    everything = _set("ab", queries=[0, 1], fit=_set("aab", files=[b"2", b"3", b"4"]))
    assert KNN(k=(1,))(Given(vectors), everything).metrics()["knn_acc1"] == 1


def test_a_k_that_takes_all_there_is_to_find_is_left_out_and_told():
    # right for any model: the index is of 3 others, of 3 images beside the query, of 4 captions
    found = Retrieval(k=(1, 2, 3, 10))(Given(_at(0, 10, 20, 45)), _set("abab"))
    assert {name for name in found.scores if "recall" in name} == {"recall@1", "recall@2"}
    assert found.notes == ("recall@k is left out at k = 3, 10: there are 3 images to find",)
    named = Retrieval(k=(2, 3))(Given(_at(0, 10, 20, 45)), _set("abab", queries=[0]))
    assert {name for name in named.scores if "recall" in name} == {"recall@1", "recall@2"}
    pair = Retrieval(k=())(Given(_at(0, 10)), _set("aa"))
    assert pair.metrics()["recall@1"] == 1 and not pair.notes
    texts = {"one": [1.0, 0.0], "two": [0.1, 1.0], "three": [-1.0, 0.0], "four": [0.0, 1.0]}
    captions = [("one", "a"), ("two", "b"), ("three", "b"), ("four", "a")]
    found = ImageText(k=(1, 2, 3, 4))(Given(_at(0, 10, 50), texts), _set("abb", captions=captions))
    assert set(found.scores) == {
        *(f"image_retrieval_recall@{k}" for k in (1, 2)),
        *(f"text_retrieval_recall@{k}" for k in (1, 2, 3)),
    }
    assert found.notes == (
        "image_retrieval_recall@k is left out at k = 3, 4: there are 3 images",
        "text_retrieval_recall@k is left out at k = 4: there are 4 captions",
    )


def test_a_domain_whose_queries_find_nothing_is_left_out_and_told():
    data = _set("aabc", domains=["left", "left", "right", "right"])
    found = Retrieval(k=())(Given(_at(0, 10, 30, 50)), data)
    assert {name for name in found.scores if "/" in name} == {
        "map/left",
        "map_with_self/left",
        "map_with_self/right",
    }
    assert not any(value != value for value in found.metrics().values())
    assert found.notes[0] == "map/right is left out: no query of right has an image to find"


def test_image_text_has_the_names_of_clip_benchmark_and_counts_what_has_no_counterpart():
    texts = {"one": [1.0, 0.0], "two": [0.1, 1.0], "three": [-1.0, 0.0]}
    data = _set("abc", captions=[("one", "a"), ("two", "b"), ("three", "d")], names={"d": "dog"})
    found = ImageText(k=(2,))(Given(_at(0, 10, 50), texts), data)
    assert found.scores["image_retrieval_recall@1"].values.tolist() == pytest.approx([1, 0, NAN], nan_ok=True)
    assert found.scores["image_retrieval_recall@1"].over == "captions"
    assert found.scores["text_retrieval_recall@1"].values.tolist() == pytest.approx([1, 0, NAN], nan_ok=True)
    assert found.metrics()["text_retrieval_recall@2"] == 1
    assert found.notes == (
        "1 of 3 images have no caption; they are left out",
        "1 of 3 captions have no image; they are left out",
    )
    assert "no text tower" in ImageText()(Given(_at(0, 10, 50)), data).skipped
    assert "no captions" in ImageText()(Given(_at(0, 10, 50), texts), _set("abc")).skipped
