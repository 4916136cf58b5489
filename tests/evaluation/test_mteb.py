"""Real task classes of mteb, only their data replaced by the emoji slice on disk."""

import io
import sys
from pathlib import Path

import datasets
import mteb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mteb.models import EncoderProtocol
from mteb.tasks.classification.eng.cifar import CIFAR10Classification
from mteb.tasks.image_text_pair_classification.eng.winoground import Winoground
from mteb.tasks.retrieval.eng.cub200_i2i_retrieval import CUB200I2I
from mteb.tasks.retrieval.eng.fashion200k_t2i_retrieval import Fashion200kT2IRetrieval
from mteb.tasks.zeroshot_classification.eng.cifar import CIFAR10ZeroShotClassification
from PIL import Image
from sklearn.linear_model import LogisticRegression

from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.evaluation.datasets import EvaluationSet, PairsFile
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators import ImageText, Retrieval, ZeroShot
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.evaluation.mteb import MTEBEncoder
from mofi_lightning.types import InputError

PROMPT = "a photo of a {}."  # of CIFAR10ZeroShotClassification


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    """What datasets keeps of a local folder must not be found by another test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Folder of a small model with a text tower."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    torch.manual_seed(0)
    DualEncoder.from_config(DualEncoderConfig(text=TextConfig())).save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(model) -> MTEBEncoder:
    return MTEBEncoder.load(f"clip={model}")


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return PairsFile(emoji_slice / "test.parquet").open()


@pytest.fixture(scope="module")
def train(emoji_slice) -> EvaluationSet:
    return PairsFile(emoji_slice / "train.parquet").open()


def local(task_class, folder: Path):
    """The task on the data in `folder`."""
    task = task_class()
    where = {"path": str(folder), "revision": "local"}
    task.metadata = task.metadata.model_copy(update={"dataset": where})
    return task


def measure(encoder, task, results: Path) -> dict[str, float]:
    """The scores of the task's test split."""
    cache = mteb.ResultCache(results)
    found = mteb.evaluate(encoder, task, cache=cache, show_progress_bar=False, co2_tracker=False)
    return found.task_results[0].scores["test"][0]


def write_labelled(folder: Path, names: list[str], **splits: EvaluationSet) -> None:
    """The columns of CIFAR-10: `img` and `label`."""
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=names))
    for split, data in splits.items():
        labels = [names.index(data.names[entity]) for entity in data.entities]
        images = [{"bytes": image, "path": None} for image in data.images]
        rows = datasets.Dataset.from_dict({"img": images, "label": labels}, features)
        rows.to_parquet(folder / f"{split}.parquet")


def write_retrieval(folder: Path, queries: dict, corpus: dict, relevant: list[tuple[str, str]]) -> None:
    """The three parts of a retrieval task."""
    columns = [[query for query, _ in relevant], [document for _, document in relevant], [1] * len(relevant)]
    qrels = dict(zip(("query-id", "corpus-id", "score"), columns, strict=True))
    configs = []
    for name, part in {"queries": queries, "corpus": corpus, "qrels": qrels}.items():
        features = None
        if "image" in part:
            features = datasets.Features(
                {n: datasets.Image() if n == "image" else datasets.Value("string") for n in part}
            )
        datasets.Dataset.from_dict(part, features).to_parquet(folder / name / "test.parquet")
        configs += [
            f"- config_name: {name}",
            "  data_files:",
            "  - split: test",
            f"    path: {name}/*.parquet",
        ]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))


def images_of(data: EvaluationSet) -> list[dict]:
    return [{"bytes": image, "path": None} for image in data.images]


def test_zero_shot_accuracy_is_ours(tmp_path, encoder, data):
    write_labelled(tmp_path / "data", data.class_names, test=data)
    scores = measure(encoder, local(CIFAR10ZeroShotClassification, tmp_path / "data"), tmp_path / "results")
    ours = ZeroShot(templates=[PROMPT])(Embedder(encoder.model), data).metrics()
    assert scores["accuracy"] == pytest.approx(ours["acc1"], abs=1e-9)
    assert ours["acc1"] > 0


def test_image_retrieval_is_ours(tmp_path, encoder, data):
    images = {"id": list(data.keys), "image": images_of(data)}
    relevant = [
        (query, other)
        for query, shown in zip(data.keys, data.entities, strict=True)
        for other, entity in zip(data.keys, data.entities, strict=True)
        if shown == entity and query != other
    ]
    write_retrieval(tmp_path / "data", images, images, relevant)
    scores = measure(encoder, local(CUB200I2I, tmp_path / "data"), tmp_path / "results")
    ours = Retrieval(k=(1, 5))(Embedder(encoder.model), data).metrics()
    assert scores["map_at_1000"] == pytest.approx(ours["map"], abs=1e-4)  # mteb rounds to five digits
    assert scores["hit_rate_at_1"] == pytest.approx(ours["recall@1"], abs=1e-4)
    assert scores["hit_rate_at_5"] == pytest.approx(ours["recall@5"], abs=1e-4)


def test_retrieval_of_images_for_texts_is_ours(tmp_path, encoder, data):
    texts = {
        "id": [f"text {i}" for i in range(len(data.captions))],
        "text": [text for text, _ in data.captions],
    }
    relevant = [
        (query, key)
        for query, (_, described) in zip(texts["id"], data.captions, strict=True)
        for key, entity in zip(data.keys, data.entities, strict=True)
        if described == entity
    ]
    write_retrieval(tmp_path / "data", texts, {"id": list(data.keys), "image": images_of(data)}, relevant)
    scores = measure(encoder, local(Fashion200kT2IRetrieval, tmp_path / "data"), tmp_path / "results")
    ours = ImageText(k=(1, 5))(Embedder(encoder.model), data).metrics()
    for k in (1, 5):
        assert scores[f"hit_rate_at_{k}"] == pytest.approx(ours[f"image_retrieval_recall@{k}"], abs=1e-4)


def test_classification_is_logistic_regression_on_our_embeddings(tmp_path, encoder, data, train):
    names = sorted({*data.class_names, *train.class_names})
    write_labelled(tmp_path / "data", names, test=data, train=train)
    task = local(CIFAR10Classification, tmp_path / "data")
    scores = measure(encoder, task, tmp_path / "results")

    embedder = Embedder(encoder.model)
    vectors = {split: embedder.images(rows).embeddings.numpy() for split, rows in (("a", train), ("b", data))}
    labels = [[names.index(rows.names[entity]) for entity in rows.entities] for rows in (train, data)]
    # no class has more images than the task's samples_per_label: its samples are all images
    assert np.bincount(labels[0]).max() <= task.samples_per_label
    reference = LogisticRegression(max_iter=100).fit(vectors["a"], labels[0]).score(vectors["b"], labels[1])
    assert scores["accuracy"] == pytest.approx(reference, abs=0.5 / len(labels[1]))


def test_compositionality_pairs_each_image_with_its_caption_by_cosine(tmp_path, encoder, data):
    pairs = [(row, row + 1) for row in range(0, 40, 2) if data.entities[row] != data.entities[row + 1]]
    columns = {}
    for place in (0, 1):
        rows = [pair[place] for pair in pairs]
        columns[f"image_{place}"] = [{"bytes": data.images[row], "path": None} for row in rows]
        columns[f"caption_{place}"] = [data.names[data.entities[row]] for row in rows]
    types = {name: datasets.Image() if "image" in name else datasets.Value("string") for name in columns}
    rows = datasets.Dataset.from_dict(columns, datasets.Features(types))
    rows.to_parquet(tmp_path / "data" / "test.parquet")
    scores = measure(encoder, local(Winoground, tmp_path / "data"), tmp_path / "results")

    embedder = Embedder(encoder.model)
    right = []
    for first, second in pairs:
        images = embedder.images(data).embeddings[[first, second]]
        texts = embedder.texts([data.names[data.entities[row]] for row in (first, second)])
        (a, b), (c, d) = (images @ texts.T).tolist()
        right.append((a > b and d > c, a > c and d > b))
    assert scores["text_acc"] == pytest.approx(np.mean([text for text, _ in right]), abs=1e-6)
    assert scores["image_acc"] == pytest.approx(np.mean([image for _, image in right]), abs=1e-6)
    assert 0 < scores["text_acc"] < 1


def encode(encoder, *batch: dict) -> torch.Tensor:
    metadata = CIFAR10ZeroShotClassification.metadata
    return encoder.encode(list(batch), task_metadata=metadata, hf_split="test", hf_subset="default")


def test_the_adapter_has_the_protocol_and_tells_what_it_can(model, encoder):
    assert isinstance(encoder, EncoderProtocol)
    about = encoder.mteb_model_meta
    assert (about.name, about.modalities) == ("mofi-lightning/clip", ["image", "text"])
    assert about.n_parameters == sum(p.numel() for p in encoder.model.parameters())
    assert MTEBEncoder(RawPixels(), "org/floor", "1").mteb_model_meta.modalities == ["image"]


def test_other_weights_under_the_same_name_are_measured_again_and_the_same_are_not(
    tmp_path, encoder, data, monkeypatch
):
    write_labelled(tmp_path / "data", data.class_names, test=data)
    torch.manual_seed(1)
    DualEncoder.from_config(DualEncoderConfig(text=TextConfig())).save(tmp_path / "clip")
    other = MTEBEncoder.load(f"clip={tmp_path / 'clip'}")
    assert other.mteb_model_meta.name == encoder.mteb_model_meta.name
    for model in (encoder, other):
        scores = measure(model, local(CIFAR10ZeroShotClassification, tmp_path / "data"), tmp_path / "results")
        ours = ZeroShot(templates=[PROMPT])(Embedder(model.model), data).metrics()
        assert scores["accuracy"] == pytest.approx(ours["acc1"], abs=1e-9)
        assert scores["recall"] == pytest.approx(ours["mean_per_class_recall"], abs=1e-9)
    monkeypatch.setattr(MTEBEncoder, "encode", None)  # whatever is measured again fails
    again = measure(other, local(CIFAR10ZeroShotClassification, tmp_path / "data"), tmp_path / "results")
    assert again["accuracy"] == pytest.approx(scores["accuracy"], abs=1e-5)  # files have six digits


def test_an_image_with_a_text_is_the_sum_of_both(encoder, data):
    image = Image.open(io.BytesIO(data.images[0]))
    both = encode(encoder, {"image": [image, image], "text": ["boar", "whale"]})
    assert torch.equal(
        both, encode(encoder, {"image": [image] * 2}) + encode(encoder, {"text": ["boar", "whale"]})
    )


def test_batches_come_back_in_order(encoder, data):
    images = [Image.open(io.BytesIO(image)) for image in data.images[:5]]
    vectors = encode(encoder, {"image": images[:2]}, {"image": images[2:]})
    expected = Embedder(encoder.model).embed_images(data.images[:5]).embeddings
    torch.testing.assert_close(vectors, expected)


@pytest.mark.parametrize("mode", ("RGB", "RGBA", "LA", "L", "P", "1", "I;16"))
def test_pillow_images_of_every_mode_are_read_as_their_files_are(encoder, mode):
    pattern = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    image = Image.fromarray(pattern, "RGBA")
    if mode == "I;16":
        image = Image.fromarray((pattern[..., 0].astype(np.uint16) << 8) + 77)
    elif mode != "RGBA":
        image = (
            image.convert("LA").convert(mode) if mode in ("LA", "L") else image.convert("RGB").convert(mode)
        )
    file = io.BytesIO()
    options = {"transparency": 3} if mode == "P" else {}
    image.save(file, "PNG", **options)
    pixels = decode(file.getvalue())
    expected = encoder.model.encode_image(encoder.model.preprocess(pixels)[None]).detach()
    torch.testing.assert_close(encode(encoder, {"image": [Image.open(file)]}), expected)


def test_similarities_are_cosines(encoder):
    a, b = torch.randn(3, 8), torch.randn(4, 8)
    expected = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    torch.testing.assert_close(torch.as_tensor(encoder.similarity(a, b)), expected)
    torch.testing.assert_close(torch.as_tensor(encoder.similarity_pairwise(a, b[:3])), expected.diagonal())


def test_a_missing_image_is_named(encoder, data):
    image = Image.open(io.BytesIO(data.images[0]))
    with pytest.raises(InputError, match="CIFAR10ZeroShot, split test, row 3: no image"):
        encode(encoder, {"image": [image, image]}, {"image": [image, None]})


def test_a_corrupt_image_of_a_data_set_is_named(tmp_path, encoder, data):
    broken = EvaluationSet(
        "broken", data.keys[:3], [*data.images[:2], b"nothing"], data.entities[:3], data.names
    )
    write_labelled(tmp_path / "data", data.class_names, test=broken)
    task = local(CIFAR10ZeroShotClassification, tmp_path / "data")
    with pytest.raises(InputError, match="CIFAR10ZeroShot, split test, batch 0: an image cannot be decoded"):
        measure(encoder, task, tmp_path / "results")


def test_a_truncated_pillow_image_is_named(encoder, data):
    image = Image.open(io.BytesIO(data.images[0][:-200]))
    with pytest.raises(InputError, match="row 0: damaged image"):
        encode(encoder, {"image": [image]})


def test_texts_for_a_model_of_images_are_refused():
    with pytest.raises(InputError, match="row 0: a text, but mofi-lightning/pixels has no text tower"):
        encode(MTEBEncoder.load("pixels"), {"text": ["boar"]})


def test_embeddings_that_are_not_finite_are_named(data):
    class Broken(RawPixels):
        def encode_image(self, image):
            embeddings = super().encode_image(image)
            embeddings[-1] = torch.nan
            return embeddings

    images = [Image.open(io.BytesIO(image)) for image in data.images[:3]]
    with pytest.raises(InputError, match="row 2: the embedding of org/broken is not finite"):
        encode(MTEBEncoder(Broken(), "org/broken", "1"), {"image": images})


def test_without_mteb_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(
        InputError, match=r"^MTEBEncoder needs mteb; pip install 'mofi-lightning\[mteb\]' brings it$"
    ):
        MTEBEncoder.load("pixels")
