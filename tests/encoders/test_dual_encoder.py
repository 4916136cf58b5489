import dataclasses
import json

import pytest
import torch
from torch.nn.functional import normalize

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import Batch, InputError

TEXTS = ["a photo of a smiling face", "grinning cat", "red apple"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def built(tokenizer: Tokenizer | None, **changes) -> DualEncoder:
    torch.manual_seed(0)
    text = TextConfig(width=32, layers=2, heads=2, context_length=24) if tokenizer else None
    return DualEncoder.from_config(DualEncoderConfig(embed_dim=16, text=text, **changes), tokenizer).eval()


@pytest.fixture(scope="module")
def model(tokenizer) -> DualEncoder:
    return built(tokenizer)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_embeddings_are_the_normalised_projection_of_the_features(model, image):
    with torch.no_grad():
        embeddings = model(
            Batch(image=image, text=model.tokenizer(TEXTS, 24)), image_tokens=True, text_tokens=True
        )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
        features = model.image.encoder((image / 255 - mean) / std).features
        torch.testing.assert_close(embeddings.image_features, features)
        torch.testing.assert_close(embeddings.image, normalize(features @ model.image.projection.weight.T))
        torch.testing.assert_close(embeddings.image, model.encode_image(image))
        torch.testing.assert_close(embeddings.text, model.encode_text(TEXTS))
    assert embeddings.image_tokens.shape[::2] == (3, model.feature_dim)
    assert embeddings.text_tokens.shape == (3, *embeddings.text_tokens_mask.shape[1:], 32)


def test_tokens_are_left_out_unless_asked_for_and_texts_unless_given(model, image):
    embeddings = model(Batch(image=image))
    assert embeddings.text is embeddings.image_tokens is embeddings.text_tokens is None


def test_the_text_feature_is_transformers_pooled_end_token(model):
    tokens = model.tokenizer(TEXTS, 24)
    with torch.no_grad():
        pooled = model.text.encoder.model(**tokens._asdict()).pooler_output
        torch.testing.assert_close(model.text.encoder(*tokens).features, pooled)


def test_text_embeddings_do_not_depend_on_padding(model):
    tokens = model.tokenizer([*TEXTS, "long " * 30], 24)
    with torch.no_grad():
        padded = model.encode_text(tokens)
        for row, text in enumerate(TEXTS):
            torch.testing.assert_close(model.encode_text([text])[0], padded[row])


def test_uint8_and_float_images_embed_alike(model, image):
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image), model.encode_image(image / 255))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_embeddings_are_unit_vectors_in_at_least_fp32(tokenizer, image, dtype, expected):
    model = built(tokenizer).to(dtype)
    with torch.no_grad():
        for embedding in (model.encode_image(image), model.encode_text(TEXTS)):
            assert embedding.dtype == expected
            torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3, dtype=expected))


def test_weights_are_a_function_of_the_global_seed_and_none_is_0d(tokenizer, model):
    again = built(tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert all(parameter.ndim >= 1 for parameter in model.parameters())


@pytest.mark.parametrize("with_text", [True, False])
def test_a_saved_model_loads_with_bit_equal_embeddings(tokenizer, image, with_text, tmp_path):
    model = built(tokenizer if with_text else None, preprocess=Preprocess(32, mean=(0.5, 0.5, 0.5)))
    model.save(tmp_path / "model")
    state = torch.random.get_rng_state()
    loaded = load(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's generator is left alone
    assert not loaded.training
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(image), model.encode_image(image))
        if with_text:
            assert torch.equal(loaded.encode_text(TEXTS), model.encode_text(TEXTS))
    written = {path.name for path in (tmp_path / "model").iterdir()}
    assert written == {"config.json", "model.safetensors"} | ({"tokenizer.json"} if with_text else set())


def test_a_model_materialised_from_the_meta_device_works_once_its_state_is_loaded(tokenizer, model, image):
    with torch.device("meta"):
        empty = DualEncoder.from_config(model.config, tokenizer)
    empty.to_empty(device="cpu").eval().load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(empty.encode_image(image), model.encode_image(image))
        assert torch.equal(empty.encode_text(TEXTS), model.encode_text(TEXTS))


def test_the_saved_configuration_does_not_need_the_pretrained_files(tmp_path):
    from safetensors.torch import save_file

    first = built(None, image="timm/resnet10t")
    save_file(first.image.encoder.model.state_dict(), tmp_path / "w.safetensors")
    options = {"pretrained": str(tmp_path / "w.safetensors"), "drop_path_rate": 0.1}
    model = built(None, image="timm/resnet10t", image_options=options)
    model.save(tmp_path / "model")
    (tmp_path / "w.safetensors").unlink()
    assert load(tmp_path / "model").config.image_options == {"drop_path_rate": 0.1}
    assert model.preprocess.size == 176


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"imgae": "mofi/tiny"}, "imgae"),
        ({"embed_dim": "many"}, "embed_dim"),
        ({"text": {"widht": 3}}, "widht"),
        ({"preprocess": {"resize": "stretch"}}, "stretch"),
    ],
)
def test_malformed_configurations_are_refused_in_one_line(values, message):
    with pytest.raises(InputError, match=message) as refusal:
        DualEncoderConfig.from_dict(values)
    assert "\n" not in str(refusal.value)


def test_configurations_survive_json(model):
    assert (
        DualEncoderConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(model.config)))) == model.config
    )


def test_text_shapes_that_cannot_be_and_texts_for_a_model_without_text_are_refused(tokenizer):
    with pytest.raises(InputError, match="heads"):
        DualEncoder.from_config(DualEncoderConfig(text=TextConfig(width=30, heads=4)), tokenizer)
    with pytest.raises(InputError, match="no text encoder"):
        built(None).encode_text(["a"])
