import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mofi_lightning.encoders.label_space import LabelSpace, LabelSpaceConfig
from mofi_lightning.evaluation.cache import Embedder
from mofi_lightning.evaluation.datasets import EvaluationSet, open_evaluation_set
from mofi_lightning.evaluation.embedding import RawPixels
from mofi_lightning.evaluation.evaluators import KNN, ImageText, Retrieval, ZeroShot, mean_and_error
from mofi_lightning.evaluation.retrieval import retrieval_average_precision
from mofi_lightning.evaluation.zero_shot import zero_shot_rank


class _Labels(LabelSpace):
    """A label space whose vectors are pixels; it keeps what it was asked and does not know `unknown`."""

    def __init__(self, descriptions: bool, unknown: str) -> None:
        super().__init__(768, LabelSpaceConfig(768, "words", descriptions))
        torch.nn.init.eye_(self.map.weight)
        self.asked: list[str] = []
        self.unknown = unknown

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.asked = list(texts)
        return torch.stack([torch.eye(768)[len(text)] * (self.unknown not in text) for text in texts])


class _Words(RawPixels):
    """Pixels with a text side, so that the measures of texts have something to measure."""

    text = "yes"

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        rows = [torch.randn(768, generator=torch.Generator().manual_seed(len(text))) for text in texts]
        return F.normalize(torch.stack(rows), dim=1)


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return open_evaluation_set(emoji_slice / "test.parquet")


def test_error_of_independent_rows_is_that_of_a_share():
    values = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0])
    mean, error = mean_and_error(values, torch.arange(8))
    assert (mean, error) == (3 / 8, pytest.approx(math.sqrt(3 / 8 * 5 / 8 / 8)))


def test_copies_of_a_row_within_its_entity_add_no_certainty():
    values, entities = torch.tensor([1.0, 0, 0, 1]), torch.arange(4)
    once = mean_and_error(values, entities)
    assert mean_and_error(values.repeat(9), entities.repeat(9)) == pytest.approx(once)
    assert mean_and_error(torch.cat([values, torch.tensor([math.nan])]), torch.arange(5)) == pytest.approx(
        once
    )


def test_retrieval_reports_both_protocols_and_each_domain(data):
    half = [("first" if label < 7 else "second") for label in data.labels()]
    split = EvaluationSet(data.name, data.keys, data.images, data.entities, domains=half)
    values = Retrieval(k=(1,))(Embedder(RawPixels()), split)
    embeddings, labels = Embedder(RawPixels()).labelled(data)
    precision = retrieval_average_precision(embeddings, labels, exclude_self=True)
    assert values["map"] == pytest.approx(float(precision.mean()))
    assert values["map"] < values["map_with_self"]
    assert values["map_first"] == pytest.approx(float(precision[labels < 7].mean()))
    assert values["queries"] == len(labels)


def test_knn_reports_the_whole_sweep_and_its_best(data):
    values = KNN(k=(1, 3), temperatures=(0.07,))(Embedder(RawPixels()), data)
    assert values["knn"] == max(values["knn_k1_t0.07"], values["knn_k3_t0.07"])


def test_measures_of_texts_are_empty_without_a_text_tower(data):
    assert ZeroShot()(Embedder(RawPixels()), data) == {}
    assert ImageText()(Embedder(RawPixels()), data) == {}


@pytest.mark.parametrize("descriptions", (True, False))
def test_a_label_space_is_asked_for_the_texts_its_vectors_were_made_of(data, descriptions):
    model = RawPixels()
    space = model.label_space = _Labels(descriptions, unknown=data.class_names[3])
    values = ZeroShot(templates=("a photo of {}",))(Embedder(model), data)
    described = [data.descriptions[entity] for entity in data.classes]
    with_descriptions = [f"{n}, {d}" for n, d in zip(data.class_names, described, strict=True)]
    assert space.asked == (with_descriptions if descriptions else data.class_names)
    embeddings, labels = Embedder(RawPixels()).labelled(data)
    rank = zero_shot_rank(embeddings, labels, space.encode_text(space.asked))
    assert values["zero_shot_top5"] == pytest.approx(float((rank <= 5).double().mean()))
    assert values["zero_shot_unknown_classes"] == 1
    undescribed = EvaluationSet(data.name, data.keys, data.images, data.entities, data.names)
    ZeroShot()(Embedder(model), undescribed)
    assert space.asked == data.class_names


def test_a_text_tower_is_asked_before_a_label_space(data):
    model = _Words()
    alone = ZeroShot()(Embedder(model), data)
    model.label_space = _Labels(True, unknown="-")
    assert ZeroShot()(Embedder(model), data) == alone
    assert not model.label_space.asked


def test_measures_of_texts_are_there_with_one(data):
    zero_shot = ZeroShot()(Embedder(_Words()), data)
    assert 0 <= zero_shot["zero_shot_top1"] <= zero_shot["zero_shot_top5"] <= 1
    recall = ImageText(k=(5,))(Embedder(_Words()), data)
    assert recall["image_text_r1"] == pytest.approx(
        (recall["image_to_text_r1"] + recall["text_to_image_r1"]) / 2
    )
    assert recall["image_to_text_r1"] <= recall["image_to_text_r5"]
