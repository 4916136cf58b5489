import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from mofi_lightning.cli import main
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.evaluation.cache import Embedder, hash_files
from mofi_lightning.evaluation.datasets import EvaluationSet, open_evaluation_set
from mofi_lightning.evaluation.embedding import RawPixels, embed_images, embed_texts
from mofi_lightning.types import InputError


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return open_evaluation_set(emoji_slice / "test.parquet")


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


class _Counting(RawPixels):
    calls = 0

    def encode_image(self, image: Tensor) -> Tensor:
        type(self).calls += 1
        return super().encode_image(image)


def test_embeddings_are_computed_once_for_a_model_and_its_data(tmp_path, data):
    first = Embedder(_Counting(), tmp_path, "abc").images(data)
    calls = _Counting.calls
    again = Embedder(_Counting(), tmp_path, "abc").images(data)
    assert _Counting.calls == calls
    torch.testing.assert_close(again.embeddings, first.embeddings, rtol=0, atol=0)
    Embedder(_Counting(), tmp_path, "another").images(data)
    assert _Counting.calls == 2 * calls


def test_failures_survive_the_cache(tmp_path, data):
    images = [data.images[0], b"no image", data.images[1]]
    broken = EvaluationSet("broken", ["a", "b", "c"], images, ["x", "x", "x"])
    first = Embedder(RawPixels(), tmp_path, "abc").images(broken)
    again = Embedder(RawPixels(), tmp_path, "abc").images(broken)
    assert again.failed == first.failed != {}
    assert Embedder(RawPixels()).labelled(broken)[0].shape == (2, 768)


def test_hash_follows_names_and_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = hash_files(tmp_path)
    assert hash_files(tmp_path) == first
    (tmp_path / "a" / "x").write_text("2")
    assert hash_files(tmp_path) != first


def test_embed_writes_keys_and_vectors_of_what_can_be_decoded(tmp_path, data, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(data.images[0])
    (folder / "b.png").write_bytes(b"no image")
    (folder / "c.png").write_bytes(data.images[1])
    main(["embed", "pixels", str(folder), str(tmp_path / "out" / "vectors.parquet")])
    table = pq.read_table(tmp_path / "out" / "vectors.parquet")
    assert table["key"].to_pylist() == ["a.png", "c.png"]
    want = embed_images(RawPixels(), data.images[0:2]).embeddings
    torch.testing.assert_close(torch.tensor(table["vector"].to_pylist()), want)
    assert "2 of 3 images embedded" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["vectors.parquet"]
