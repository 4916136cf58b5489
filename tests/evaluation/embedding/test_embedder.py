import pytest
import torch
from torch import Tensor

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.evaluation import versions
from mofi_lightning.evaluation.datasets import EvaluationSet, at_path
from mofi_lightning.evaluation.embedding import embedder as module
from mofi_lightning.evaluation.embedding.embedder import Deferred, Embedder
from mofi_lightning.evaluation.embedding.images import embed_images
from mofi_lightning.evaluation.embedding.store import EmbeddingStore
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.types import InputError


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return at_path(emoji_slice / "test.parquet").open()


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    tokenizer = Tokenizer.train(["a picture of a whale", "boar"] * 20, 300)
    torch.manual_seed(0)
    return DualEncoder.from_config(DualEncoderConfig(text=TextConfig()), tokenizer).eval()


class Counting(RawPixels):
    """Raw pixels that count what they embed, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_image(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return super().encode_image(image)


def images_of(images: list[bytes], name: str = "set") -> EvaluationSet:
    keys = [str(row) for row in range(len(images))]
    return EvaluationSet(name, keys, images, ["x"] * len(images))


def no_model() -> RawPixels:
    raise AssertionError("the model was loaded")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 8)


def test_the_cache_gives_what_embedding_gives_without_loading_the_model(tmp_path, data, model):
    first = Embedder(model, tmp_path, "abc").images(data)
    again = Embedder(Deferred(no_model), tmp_path, "abc").images(data)
    want = embed_images(model, data.images, batch_size=8)
    for got in (first, again):
        assert torch.equal(got.embeddings, want.embeddings)
        assert torch.equal(got.features, want.features)
    with pytest.raises(AssertionError, match="the model was loaded"):
        Embedder(Deferred(no_model), tmp_path, "another").images(data)


def test_other_versions_of_libraries_embed_anew(tmp_path, data, monkeypatch):
    Embedder(RawPixels(), tmp_path, "abc").images(data)
    monkeypatch.setattr(versions, "version", lambda library: "0.0.1")
    with pytest.raises(AssertionError, match="the model was loaded"):
        Embedder(Deferred(no_model), tmp_path, "abc").images(data)


def test_a_copy_of_an_image_is_embedded_once(tmp_path, data):
    images = [data.images[row] for row in (0, 1, 0, 2, 1, 0, 3, 4, 5, 6, 7, 8, 0)]
    counting = Counting()
    got = Embedder(counting, tmp_path, "abc").images(images_of(images))
    assert counting.batches == [8, 1]
    torch.testing.assert_close(got.embeddings, embed_images(RawPixels(), images).embeddings)
    assert torch.equal(got.embeddings[0], got.embeddings[12])


def test_a_batch_is_embedded_as_without_the_cache_if_any_of_it_is_unknown(tmp_path, data):
    images = list(data.images[:24])
    counting = Counting()
    embedder = Embedder(counting, tmp_path, "abc")
    embedder.images(images_of(images[8:19], "part"))
    counting.batches.clear()
    embedder.images(images_of(images, "whole"))
    assert counting.batches == [8, 8]  # the second is known; the third in part
    (store,) = tmp_path.glob("*.images")
    assert len(EmbeddingStore(store)) == 24


def test_undecodable_images_are_not_decoded_twice_and_keep_their_reason(tmp_path, data, monkeypatch):
    broken = images_of([data.images[0], b"no image", data.images[1], b"no image", b""])
    first = Embedder(RawPixels(), tmp_path, "abc").images(broken)
    again = Embedder(Deferred(no_model), tmp_path, "abc").images(broken)
    for got in (first, again):
        assert sorted(got.failed) == [1, 3, 4]
        assert got.failed[1] == got.failed[3] == embed_images(RawPixels(), broken.images).failed[1]
        assert got.embeddings.isnan().all(dim=1).tolist() == [False, True, False, True, True]
    assert Embedder(RawPixels()).labelled(broken).embeddings.shape == (2, 768)


def test_nothing_that_can_be_embedded_is_an_error_with_a_cache_too(tmp_path):
    for _ in range(2):
        with pytest.raises(InputError, match="none of 2 images could be embedded; the first: no JPEG"):
            Embedder(RawPixels(), tmp_path, "abc").images(images_of([b"no image", b""]))


def test_texts_are_embedded_once_and_read_back(tmp_path, model):
    texts = ["a whale", "boar", "a picture of a boar", "boar"] * 5
    first = Embedder(model, tmp_path, "abc").texts(texts)
    again = Embedder(Deferred(no_model), tmp_path, "abc").texts(texts[1:])
    torch.testing.assert_close(first, Embedder(model).texts(texts), atol=1e-6, rtol=0)
    assert torch.equal(again, first[1:])
    (store,) = tmp_path.glob("*.texts")
    assert len(EmbeddingStore(store)) == 3
    with pytest.raises(InputError, match="no texts"):
        Embedder(model, tmp_path, "abc").texts([])
    with pytest.raises(InputError, match="RawPixels has no text tower"):
        Embedder(RawPixels(), tmp_path, "pixels").texts(texts)


class Broken(RawPixels):
    text = "broken"

    def encode_image(self, image: Tensor) -> Tensor:
        return super().encode_image(image) * torch.tensor(torch.nan)

    def encode_text(self, texts) -> Tensor:
        return torch.full((len(texts), 768), torch.inf)


@pytest.mark.parametrize("cached", [False, True])
def test_numbers_that_are_not_finite_are_named_not_measured(tmp_path, data, cached):
    for _ in range(2):
        embedder = Embedder(Broken(), tmp_path if cached else None, "abc", description="Ours")
        with pytest.raises(InputError, match=r"embeddings of Ours are not finite \(.+, \.\.\.\); the model"):
            embedder.labelled(data)
        with pytest.raises(
            InputError, match="2 of 2 text embeddings of Ours are not finite, the first of 'a'"
        ):
            embedder.texts(["a", "b"])


def test_sets_beyond_two_are_read_again_from_disk(tmp_path, data):
    embedder = Embedder(Counting(), tmp_path, "abc")
    sets = [images_of(list(data.images[row : row + 4]), str(row)) for row in (0, 4, 8)]
    first = [embedder.images(one).embeddings for one in sets]
    assert len(embedder._known) == 2
    batches = list(embedder.model.batches)
    assert torch.equal(embedder.images(sets[0]).embeddings, first[0])
    assert embedder.model.batches == batches


def test_texts_that_look_alike_when_they_are_joined_are_told_apart(model):
    embedder = Embedder(model)
    assert len(embedder.texts(["a\0b"])) == 1
    assert len(embedder.texts(["a", "b"])) == 2
