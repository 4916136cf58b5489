"""Tiny models with fresh weights, saved by their libraries, against these libraries called directly."""

import builtins
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import skimage
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers, processors
from torch.nn.functional import normalize

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.encoders.peers import OpenClipEncoder, load_encoder
from mofi_lightning.encoders.peers import hugging_face as peer
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.types import InputError

TEXTS = ["a cup of coffee", "cat", "an astronaut in a suit " * 9]
ARCHITECTURE = "tiny-for-tests"


@pytest.fixture(scope="module")
def photographs() -> Sequence[torch.Tensor]:
    """Three real photographs of three shapes, uint8 `[3, H, W]`."""
    shots = (skimage.data.astronaut()[:300], skimage.data.coffee(), skimage.data.chelsea()[:, 100:300])
    return [torch.from_numpy(np.ascontiguousarray(shot)).permute(2, 0, 1).contiguous() for shot in shots]


def save_tokenizer(folder: Path, length: int) -> None:
    words = sorted({word for text in TEXTS for word in text.split()})
    raw = RawTokenizer(
        models.WordLevel({w: n for n, w in enumerate(["<pad>", "<unk>", "<eos>", *words])}, "<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        model_max_length=length,
    ).save_pretrained(folder)


TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "vocab_size": 20, "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def hugging_face(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    if request.param == "clip":
        # an eos id of its own: 2 stands for the largest id, as in CLIP's first release
        config: Any = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
        transformers.CLIPModel(config).save_pretrained(folder)
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(folder)
    else:
        config = transformers.SiglipConfig(text_config={**TEXT, "projection_size": 16}, vision_config=VISION)
        transformers.SiglipModel(config).save_pretrained(folder)
        transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    save_tokenizer(folder, 12)
    return folder


def embed(model: Any, images: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        batch = torch.stack([model.preprocess(image) for image in images])
        return model.encode_image(batch), model.encode_text(TEXTS)


def test_a_hugging_face_folder_embeds_as_transformers_does(
    hugging_face: Path, photographs: Sequence[torch.Tensor]
) -> None:
    model: Any = load_encoder(str(hugging_face))

    images, texts = embed(model, photographs)

    peer = transformers.AutoModel.from_pretrained(hugging_face).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(hugging_face)
    tokenizer = transformers.AutoTokenizer.from_pretrained(hugging_face)
    siglip = peer.config.model_type == "siglip"
    padding = "max_length" if siglip else True
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, max_length=12, return_tensors="pt")
    if siglip:  # trained without a mask, which this tokenizer gives all the same
        del tokens["attention_mask"]
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in photographs]
    with torch.inference_mode():
        pixels = processor(images=pil, return_tensors="pt")["pixel_values"]
        by_image = normalize(peer.get_image_features(pixel_values=pixels).pooler_output)
        by_text = normalize(peer.get_text_features(**tokens).pooler_output)
    assert not model.training
    assert model.text is not None
    assert torch.equal(torch.stack([model.preprocess(image) for image in photographs]), pixels)
    torch.testing.assert_close(images, by_image)
    torch.testing.assert_close(texts, by_text)


def test_a_text_embeds_the_same_alone_and_beside_longer_ones(hugging_face: Path) -> None:
    model: Any = load_encoder(str(hugging_face))

    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(TEXTS)[1:2], model.encode_text(TEXTS[1:2]))


def test_a_folder_that_lacks_weights_is_refused(hugging_face: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hugging_face, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.startswith("text_model.") and "fc1.weight" in name)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InputError, match=rf"lacks 1 of its weights, such as {lost}, which would be random"):
        load_encoder(str(folder))


def test_a_processor_that_keeps_the_shape_of_images_is_refused(tmp_path: Path) -> None:
    config: Any = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(
        tmp_path
    )
    save_tokenizer(tmp_path, 12)

    with pytest.raises(InputError, match=r"wide images to \(32, 48\) and high ones to \(48, 32\)"):
        load_encoder(str(tmp_path))


def test_positions_that_count_from_the_padding_id_are_not_exceeded(tmp_path: Path) -> None:
    text = {**TEXT, "max_position_embeddings": 14, "pad_token_id": 0, "project_dim": 16}
    config: Any = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    transformers.AltCLIPModel(config).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, 10**30)
    model: Any = load_encoder(str(tmp_path))
    words = ["cat", "coffee", "a", "suit"] * 10
    longest = " ".join([*words[:12]])  # of 13 positions, one is that of the end

    with torch.inference_mode():
        found = model.encode_text([" ".join(words), longest, " ".join(words[:11])])

    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-4)


@pytest.fixture
def open_clip_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [tmp_path])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{ARCHITECTURE}.json").write_text(json.dumps(config))
    open_clip.factory._rescan_model_configs()
    torch.manual_seed(1)
    torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_an_open_clip_checkpoint_embeds_as_open_clip_does(
    open_clip_checkpoint: Path, photographs: Sequence[torch.Tensor]
) -> None:
    model: Any = load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}")

    images, texts = embed(model, photographs)

    peer, transform = open_clip.create_model_from_pretrained(ARCHITECTURE, str(open_clip_checkpoint))
    pil = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in photographs]
    with torch.inference_mode():
        pixels = torch.stack([transform(image) for image in pil])
        by_image = peer.eval().encode_image(pixels, normalize=True)
        by_text = peer.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS), normalize=True)
    assert torch.equal(torch.stack([model.preprocess(image) for image in photographs]), pixels)
    torch.testing.assert_close(images, by_image)
    torch.testing.assert_close(texts, by_text)


SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def test_an_open_clip_file_is_read_as_the_weights_that_open_clip_lists(
    open_clip_checkpoint: Path, photographs: Sequence[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = {"a": {**SIGLIP, "quick_gelu": True}, "b": {**SIGLIP, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, listed)

    images, texts = embed(load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}"), photographs)

    peer = open_clip.create_model(ARCHITECTURE, str(open_clip_checkpoint), force_quick_gelu=True).eval()
    squashed = [
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR)
        for image in photographs
    ]
    pixels = torch.stack(
        [torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in squashed]
    )
    with torch.inference_mode():
        by_image = peer.encode_image(pixels, normalize=True)
        by_text = peer.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS), normalize=True)
    torch.testing.assert_close(images, by_image)
    torch.testing.assert_close(texts, by_text)


def test_where_listed_weights_differ_openais_preprocessing_is_taken_and_said_so(
    open_clip_checkpoint: Path,
    photographs: Sequence[torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}"
    unlisted = embed(load_encoder(name), photographs)
    openai = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "quick_gelu": True,
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, ARCHITECTURE, {"a": SIGLIP, "b": openai})

    found = embed(load_encoder(name), photographs)

    assert torch.equal(found[0], unlisted[0])
    assert torch.equal(found[1], unlisted[1])
    assert "differ in image_interpolation, image_mean, image_resize_mode, image_std" in caplog.text


def test_faulty_open_clip_names_are_explained(
    open_clip_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="open_clip:ARCHITECTURE=PATH"):
        load_encoder("open_clip:ViT-B-32")
    with pytest.raises(InputError, match="no architecture 'hf-hub:a/b'"):
        load_encoder(f"open_clip:hf-hub:a/b={open_clip_checkpoint}")
    with pytest.raises(InputError, match="no open_clip checkpoint at"):
        load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}.missing")
    torch.save({"state_dict": {"visual.proj": torch.zeros(3)}}, open_clip_checkpoint)
    with pytest.raises(InputError, match="open_clip cannot load"):
        load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}")

    bare_import = builtins.__import__

    def without_open_clip(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "open_clip":
            raise ImportError(name)
        return bare_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_open_clip)
    with pytest.raises(InputError, match="pip install open-clip-torch"):
        load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}")


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_nothing_is_unpickled(open_clip_checkpoint: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"state_dict": Payload(made)}, open_clip_checkpoint)
    with pytest.raises(InputError, match="open_clip cannot load"):
        load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}")
    folder = tmp_path / "hugging_face"
    transformers.CLIPConfig(text_config=TEXT, vision_config=VISION).save_pretrained(folder)
    torch.save({"logit_scale": Payload(made)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded by transformers"):
        load_encoder(str(folder))

    assert not made.exists()


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    config = {
        "model_type": "unheard-of",
        "auto_map": {"AutoModel": "model.Model", "AutoConfig": "model.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(InputError, match="cannot be loaded by transformers"):
        load_encoder(str(tmp_path))

    assert not (tmp_path / "ran").exists()


def test_models_of_one_modality_are_refused(tmp_path: Path) -> None:
    transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)).save_pretrained(tmp_path / "text")
    DualEncoder.from_config(DualEncoderConfig(embed_dim=8)).save(tmp_path / "images")

    with pytest.raises(InputError, match="does not embed images and texts in one space"):
        load_encoder(str(tmp_path / "text"))
    with pytest.raises(InputError, match="has no text encoder"):
        load_encoder(str(tmp_path / "images"))


def test_models_of_images_as_loose_patches_are_refused(tmp_path: Path) -> None:
    vision = {**TOWER, "num_patches": 16, "patch_size": 8}
    config = transformers.Siglip2Config(text_config={**TEXT, "projection_size": 16}, vision_config=vision)
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, 12)

    with pytest.raises(
        InputError, match=r"takes .*pixel_attention_mask.*; give a model of a fixed resolution"
    ):
        load_encoder(str(tmp_path))


def test_dual_encoders_are_loaded_from_their_folder_and_from_that_of_a_run(
    tmp_path: Path, photographs: Sequence[torch.Tensor]
) -> None:
    config = DualEncoderConfig(embed_dim=8, text=TextConfig(width=16, layers=1, heads=2))
    DualEncoder.from_config(config).save(tmp_path / "run" / "model")

    folder, run = (embed(load_encoder(str(tmp_path / name)), photographs) for name in ("run/model", "run"))

    expected = embed(load(tmp_path / "run" / "model"), photographs)
    for found in (folder, run):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("name", ["missing", "./a/b", "/nowhere/model", "a/b/c"])
def test_nothing_at_a_path_is_said_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no model at .*; give a model folder"):
        load_encoder(name)


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        load_encoder(str(tmp_path))


def test_weights_of_another_architecture_are_told_by_numbers_of_keys(open_clip_checkpoint: Path) -> None:
    state = torch.load(open_clip_checkpoint, weights_only=True)
    missing, other_shape = sorted(name for name in state if name.startswith("visual."))[:2]
    del state[missing]
    state |= {"first.new": torch.zeros(1), "second.new": torch.zeros(1)}
    state[other_shape] = torch.zeros(1, 2, 3)
    torch.save(state, open_clip_checkpoint)
    with pytest.raises(InputError) as refused:
        load_encoder(f"open_clip:{ARCHITECTURE}={open_clip_checkpoint}")
    message = str(refused.value)
    assert f"1 keys are missing, such as {missing!r}, 2 keys are none of {ARCHITECTURE}'s" in message
    assert "such as 'first.new', 1 have another shape" in message and f"such as {other_shape!r}" in message


STRIP = torch.arange(3 * 4 * 6000).remainder(251).to(torch.uint8).view(3, 4, 6000)


def test_of_a_strip_only_the_middle_is_scaled_by_transformers(
    hugging_face: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_encoder(str(hugging_face))
    whole = pixels_of_transformers(STRIP, hugging_face)
    widths = []
    real = peer._pixels
    monkeypatch.setattr(peer, "_pixels", lambda *args: widths.append(args[1].shape[-1]) or real(*args))
    # squashed to a square it does not grow, and all of it counts
    assert torch.allclose(model.preprocess(STRIP), whole, atol=1e-5)
    assert widths == [64 if hugging_face.name.startswith("clip") else 6000]


def pixels_of_transformers(image: torch.Tensor, folder: Path) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    taken = processor(images=image, return_tensors="pt", input_data_format="channels_first")
    return taken["pixel_values"][0]


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_of_a_strip_only_the_middle_is_scaled_by_open_clip(
    open_clip_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, resize: str
) -> None:
    peer, _, transform = open_clip.create_model_and_transforms(ARCHITECTURE, image_resize_mode=resize)
    widths = []

    def noted(image: Image.Image) -> torch.Tensor:
        widths.append(image.width)
        return transform(image)

    pixels = OpenClipEncoder(peer, noted, None).preprocess(STRIP)
    whole = transform(Image.fromarray(STRIP.permute(1, 2, 0).numpy()))
    torch.testing.assert_close(pixels, whole, atol=1e-5, rtol=0)
    assert widths == [64 if resize == "shortest" else 6000]
