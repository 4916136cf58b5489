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
        "1 of 4 queries have no other image of their entity; only map_with_self counts them",
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
    notes = Retrieval()(Given(_at(0, 10, 99, 20, 20)), data).notes
    assert notes == (
        "2 images are the same file as another one of the set; finding copies inflates mAP",
        "4 of 5 images have exactly the embedding of another one; they tie",
    )
    assert Retrieval()(Given(_at(0, 10, 30, 50)), _set("aabb")).notes == ()


def test_neighbours_classify_and_classes_that_none_can_have_are_counted():
    found = KNN(k=(1, 2), temperatures=(0.07,))(Given(_at(0, 1, 30, 31, 60, NAN)), _set("aabbca"))
    assert found.scores["knn_acc1"].values.tolist() == pytest.approx([1, 1, 1, 1, 0, NAN], nan_ok=True)
    assert found.values == pytest.approx({"knn_k1_t0.07": 4 / 5, "knn_k2_t0.07": 4 / 5})
    assert found.notes == ("1 of 5 images are of a class that no neighbour can have",)


def test_fit_votes_or_else_the_images_that_are_no_queries():
    voters = _set("bba", files=[b"2", b"3", b"4"])
    vectors = _at(0, 60, 1, 2, 61)
    split = KNN(k=(1,))(Given(vectors), _set("ab", fit=voters))
    assert split.scores["knn_acc1"].values.tolist() == [0, 0]
    named = KNN(k=(1,))(Given(vectors), _set("abbba", queries=[0, 1]))
    assert named.scores["knn_acc1"].values.tolist() == pytest.approx([0, 0, NAN, NAN, NAN], nan_ok=True)
    assert KNN()(Given(vectors), _set("a")).skipped


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
