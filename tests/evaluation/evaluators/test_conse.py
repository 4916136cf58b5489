import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tests.evaluation.evaluators.given import Given
from torch import Tensor

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.evaluators import ConSE
from mofi_lightning.types import InputError

CLASSES = "abcdefgh"
SEEN = frozenset("abcdexy")
VECTORS = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)


def _images() -> tuple[Tensor, list[str]]:
    """Images of classes in turn, 320 to learn from and 40 to classify, near a map of their label's vector."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(360) % 8
    world = torch.randn(5, 12, generator=generator)
    noise = 2 * torch.randn(360, 12, generator=generator)
    return F.normalize(torch.from_numpy(VECTORS)[labels] @ world + noise, dim=1), [CLASSES[i] for i in labels]


IMAGES, ENTITIES = _images()


def _part(rows: range, entities: list[str], **about) -> EvaluationSet:
    keys = [str(row) for row in rows]
    return EvaluationSet("set", keys, [key.encode() for key in keys], entities, **about)


def _set(**about) -> EvaluationSet:
    fit = _part(range(320), ENTITIES[:320])
    return _part(range(320, 360), ENTITIES[320:], **{"fit": fit, "seen": SEEN, **about})


@pytest.fixture
def vectors(tmp_path):
    table = pa.table({"id": list(CLASSES), "vector": pa.array(VECTORS.tolist(), pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "vectors.parquet")
    return tmp_path / "vectors.parquet"


@pytest.mark.parametrize("top", [1, 3, 10])
def test_equals_the_method_written_out_with_scikit_learn(vectors, top):
    kinds = {label: ["left" if label in "aceg" else "right"] for label in CLASSES}
    found = ConSE(vectors, top, hits=(1, 2), precision=(2,))(Given(IMAGES), _set(hierarchy=kinds))
    assert 1e-4 < found.values["conse_lambda"] < 1e4  # where scikit-learn converges
    learnt = [row for row in range(320) if ENTITIES[row] in SEEN]
    model = LogisticRegression(C=1 / found.values["conse_lambda"], max_iter=1000, tol=1e-8)
    model.fit(IMAGES[learnt].double().numpy(), [ENTITIES[row] for row in learnt])
    probabilities = model.predict_proba(IMAGES[320:].double().numpy())
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    right = {("unseen", 1): [], ("unseen", 2): [], ("generalized", 1): [], ("generalized", 2): []}
    for row, entity in zip(probabilities, ENTITIES[320:], strict=True):
        if entity in SEEN:
            continue
        best = np.argsort(-row)[:top]
        embedding = row[best] @ unit[best] / row[best].sum()
        for protocol, candidates in (("unseen", "fgh"), ("generalized", CLASSES)):
            order = sorted(candidates, key=lambda label: -float(unit[CLASSES.index(label)] @ embedding))
            for k in (1, 2):
                right[protocol, k].append(entity in order[:k])
    for (protocol, k), hits in right.items():
        scores = found.scores[f"conse_{protocol}_hit@{k}"].values
        assert scores[~scores.isnan()].tolist() == hits
        assert len(hits) == 15
    assert {"conse_unseen_hp@2", "conse_generalized_hp@2"} < set(found.metrics())
    assert found.values["conse_seen"] == 5


def test_an_image_between_two_seen_classes_is_of_the_unseen_one_between_them(tmp_path):
    labels = {"a": [1, 0, 0, 0], "b": [0, 1, 0, 0], "c": [0, 0, 1, 0], "d": [0, 0, 0, 1]}
    labels |= {"ab": [1, 1, 0, 0], "cd": [0, 0, 1, 1]}
    table = pa.table({"id": list(labels), "vector": pa.array(labels.values(), pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "vectors.parquet")
    entities = ["a", "b", "c", "d"] * 5 + ["ab", "cd"] * 10
    noise = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) / 10
    images = torch.tensor([labels[entity] for entity in entities]) + noise
    data = _part(range(20, 40), entities[20:], fit=_part(range(20), entities[:20]), seen=frozenset("abcd"))
    found = ConSE(tmp_path / "vectors.parquet", hits=(1, 3))(Given(images), data)
    assert found.metrics()["conse_unseen_hit@1"] == 1
    assert found.metrics()["conse_generalized_hit@3"] == 1


def test_images_of_unseen_classes_teach_nothing(vectors):
    wrong = IMAGES.clone()
    wrong[[row for row in range(320) if ENTITIES[row] not in SEEN]] *= -1
    one, two = (ConSE(vectors, hits=(1,))(Given(images), _set()).metrics() for images in (IMAGES, wrong))
    assert one == two


def test_a_given_penalty_is_the_classifiers(vectors):
    found = [ConSE(vectors, penalty=penalty, hits=(1,))(Given(IMAGES), _set()) for penalty in (0.1, 100)]
    assert [measurement.values["conse_lambda"] for measurement in found] == [0.1, 100]
    assert found[0].metrics() != found[1].metrics()
    with pytest.raises(InputError, match=r"penalty 0 .* not positive"):
        ConSE(vectors, penalty=0)


def test_seen_classes_without_images_are_named(vectors):
    fit = _part(range(320), [entity if entity != "c" else "a" for entity in ENTITIES[:320]])
    found = ConSE(vectors, hits=(1,))(Given(IMAGES), _set(fit=fit))
    assert "1 seen classes have no image to learn from: c" in found.notes


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"seen": frozenset()}, "does not say which classes were seen"),
        ({"fit": None}, "no images to learn the seen classes from"),
        ({"seen": frozenset(CLASSES)}, "no image is of an unseen class"),
        ({"seen": frozenset("a")}, "too few images of seen classes"),
        ({"seen": frozenset("xy")}, "too few images of seen classes"),
    ],
)
def test_what_cannot_be_measured_is_skipped_with_a_reason(vectors, about, why):
    found = ConSE(vectors)(Given(IMAGES), _set(**about))
    assert why in found.skipped and not found.metrics()


def test_label_vectors_of_other_classes_or_none_are_refused(vectors, tmp_path):
    with pytest.raises(InputError, match="lack 1 of 9 entities, the first 'z'"):
        ConSE(vectors)(Given(IMAGES), _set(names={"z": "zebra"}))
    with pytest.raises(InputError, match="no file of label vectors"):
        _ = ConSE(tmp_path / "none.parquet").config
    with pytest.raises(InputError, match="top 0 labels"):
        ConSE(vectors, top=0)


def test_other_vectors_in_the_same_file_are_another_configuration(vectors):
    before = ConSE(vectors).config
    assert ConSE(vectors).config == before
    table = pa.table({"id": list(CLASSES), "vector": pa.array((-VECTORS).tolist(), pa.list_(pa.float32()))})
    pq.write_table(table, vectors)
    assert ConSE(vectors).config != before
