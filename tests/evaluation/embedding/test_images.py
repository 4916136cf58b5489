import doctest

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.images import encoded
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.evaluation.datasets import EvaluationSet, at_path
from mofi_lightning.evaluation.embedding import images as module
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.embedding.images import embed_images, embed_texts, encode, output_widths
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


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_images_are_embedded_in_order_whatever_the_batch(model, data, batch_size):
    got = embed_images(model, data.images, batch_size)
    with torch.inference_mode():
        want = torch.cat([model.encode_image(model.preprocess(decode(image))[None]) for image in data.images])
    torch.testing.assert_close(got.embeddings, want, atol=1e-5, rtol=0)
    assert got.embeddings.dtype == torch.float32
    assert not got.failed


def test_undecodable_images_are_counted_by_kind_and_fill_no_row_with_numbers(data):
    good = data.images[0]
    broken = [good, b"no image", good[: len(good) // 2], good, b"", b"neither"]
    got = embed_images(RawPixels(), iter(broken), batch_size=2)
    assert got.usable.tolist() == [0, 3]
    assert sorted(got.failed) == [1, 2, 4, 5]
    assert got.embeddings[[1, 2, 4, 5]].isnan().all()
    torch.testing.assert_close(got.embeddings[0], got.embeddings[3])
    assert sum(got.failures().values()) == 4
    assert list(got.failures().values()) == [3, 1]


def test_nothing_that_can_be_embedded_is_an_error():
    with pytest.raises(InputError, match="none of 1 images could be embedded; the first:"):
        embed_images(RawPixels(), [b"no image"])
    with pytest.raises(InputError, match="none of 0 images"):
        embed_images(RawPixels(), [])


def test_texts_are_embedded_in_order_whatever_the_batch(model):
    texts = ["a whale", "boar", "a picture of a boar"]
    with torch.inference_mode():
        want = model.encode_text(texts)
    torch.testing.assert_close(embed_texts(model, texts, batch_size=2), want, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="RawPixels has no text tower"):
        embed_texts(RawPixels(), texts)


def test_raw_pixels_are_pillows_16_x_16_thumbnail_minus_its_mean(data):
    image = decode(data.images[0])
    got = RawPixels().encode_image(RawPixels.preprocess(image)[None])[0]
    thumbnail = to_pil_image(image).resize((16, 16), Image.Resampling.BILINEAR)
    pixels = pil_to_tensor(thumbnail).float().flatten()
    torch.testing.assert_close(got, F.normalize(pixels - pixels.mean(), dim=0), atol=1e-3, rtol=0)


def test_features_come_with_the_embeddings(model, data):
    got = embed_images(model, data.images[:5], batch_size=2)
    with torch.inference_mode():
        pixels = torch.stack([model.preprocess(decode(image)) for image in data.images[:5]])
        _, want = model.encode_image_and_features(pixels)
    torch.testing.assert_close(got.features, want, atol=1e-5, rtol=0)
    assert output_widths(model) == (got.embeddings.shape[1], got.features.shape[1])
    pixels_only = embed_images(RawPixels(), data.images[:2])
    assert pixels_only.features is pixels_only.embeddings


def test_probes_can_learn_from_what_is_embedded(model, data):
    got = embed_images(model, data.images[:2])
    weight = torch.zeros(got.features.shape[1], requires_grad=True)
    (got.features @ weight).sum().backward()
    assert weight.grad is not None
    assert not encode(model, model.preprocess(decode(data.images[0]))[None])[0].is_inference()


def test_the_example_of_a_model_of_ones_own_runs():
    assert doctest.testmod(module).attempted
    assert not doctest.testmod(module).failed


class FailsAtNine(RawPixels):
    """Its preprocessing fails on images of nine rows."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def preprocess(self, image):
        if image.shape[1] == 9:
            raise self.error
        return RawPixels.preprocess(image)


def pictures(*heights: int) -> list[bytes]:
    return [encoded(Image.new("RGB", (8, height)), "PNG") for height in heights]


def test_a_failing_model_is_an_error_that_names_the_step_and_the_image(tmp_path):
    images = pictures(8, 8, 8, 9, 8)
    model = FailsAtNine(ValueError("nine\nrows"))
    with pytest.raises(InputError, match=r"^preprocessing image 3 failed: ValueError: nine rows$"):
        embed_images(model, images, batch_size=2)
    for error in (MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            embed_images(FailsAtNine(error), images, batch_size=2)
    data = EvaluationSet("set", list("abcde"), [images[0], b"none", *images[:2], images[3]], list("aabbc"))
    with pytest.raises(InputError, match="preprocessing image 4 failed"):
        Embedder(model, tmp_path, "hash").images(data)


def test_a_failing_forward_pass_is_an_error_that_names_the_images(monkeypatch):
    class Model(RawPixels):
        text = True

        def encode_image(self, image):
            raise RuntimeError("no kernel")

        def encode_text(self, texts):
            raise IndexError("out of range")

    with pytest.raises(InputError, match=r"^embedding images 0 to 1 failed: RuntimeError: no kernel$"):
        embed_images(Model(), pictures(8, 8, 8), batch_size=2)
    with pytest.raises(InputError, match=r"^embedding texts 0 to 2 failed: IndexError: out of range$"):
        embed_texts(Model(), ["a", "b", "c"])
