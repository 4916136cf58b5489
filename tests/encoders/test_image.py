import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from mofi_lightning.encoders.preprocess import CLIP_MEAN, Preprocess
from mofi_lightning.encoders.registry import build_image_encoder
from mofi_lightning.types import InputError

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
TIMM_SAMPLE = [
    ("resnet10t", {}),  # feature map, average pooling
    ("convnext_atto", {}),  # norm in the head
    ("mobilenetv3_small_050", {}),  # features wider than the last map
    ("vit_tiny_patch16_224", {"depth": 2}),  # class token
    ("swin_tiny_patch4_window7_224", SMALL_SWIN),  # channels last
]


def pixels(preprocess: Preprocess) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, preprocess.size, preprocess.size)


@pytest.mark.parametrize(("name", "options"), TIMM_SAMPLE)
def test_timm_features_are_those_of_the_model_without_classifier(name, options):
    torch.manual_seed(1)
    encoder = build_image_encoder(f"timm/{name}", **options).eval()
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        output = encoder(pixels(encoder.preprocess), tokens=True)
        assert torch.equal(output.features, model(pixels(encoder.preprocess)))
    assert output.features.shape == (2, encoder.feature_dim)
    assert output.tokens.shape[:2] == output.tokens_mask.shape
    assert output.tokens.shape[2] == model.num_features


def test_channels_last_and_first_maps_give_tokens_that_pool_to_the_features():
    for name, options in (("swin_tiny_patch4_window7_224", SMALL_SWIN), ("resnet10t", {})):
        encoder = build_image_encoder(f"timm/{name}", **options).eval()
        with torch.no_grad():
            output = encoder(pixels(encoder.preprocess), tokens=True)
        torch.testing.assert_close(output.tokens.mean(1), output.features)


def test_timm_preprocess_is_the_data_config():
    encoder = build_image_encoder("timm/vit_tiny_patch16_224", img_size=96)
    data = timm.data.resolve_data_config({}, model=encoder.model)
    assert encoder.preprocess == Preprocess(
        size=96, crop=data["crop_pct"], interpolation="bicubic", mean=data["mean"], std=data["std"]
    )
    assert build_image_encoder("timm/resnet10t").preprocess.size == 176


def test_timm_reads_local_safetensors_and_nothing_else(tmp_path):
    model = timm.create_model("resnet10t", num_classes=10)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    encoder = build_image_encoder("timm/resnet10t", pretrained=str(tmp_path / "w.safetensors"))
    assert torch.equal(encoder.model.conv1[0].weight, model.conv1[0].weight)
    assert encoder.rebuild_options == {}
    torch.save(model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage")
    for name in ("w.pth", "garbage.safetensors", "missing.safetensors"):
        with pytest.raises(InputError):
            build_image_encoder("timm/resnet10t", pretrained=str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/vit_base_patch16_clp_224", {}, "did you mean vit_base_patch16_clip_224"),
        ("timm/resnet10t", {"paint": "red"}, "paint"),
        ("tim/resnet10t", {}, "did you mean 'timm'"),
        ("resnet10t", {}, "has no library"),
        ("mofi/b61", {}, "did you mean mofi/b16"),
        ("mofi/tiny", {"paint": "red"}, "paint"),
        ("hf/nowhere/at-all", {"paint": "red"}, "paint"),
        ("parquet/x", {}, "no backbone library"),
    ],
)
def test_wrong_names_and_options_are_refused_in_one_line(name, options, message):
    with pytest.raises(InputError, match=message) as refusal:
        build_image_encoder(name, **options)
    assert "\n" not in str(refusal.value)


VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def clip_folder(tmp_path):
    vision = transformers.CLIPVisionConfig(**VISION)
    text = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    processor = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": list(CLIP_MEAN),
        "image_std": [0.5, 0.5, 0.5],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


def test_a_hugging_face_clip_folder_gives_its_vision_model(clip_folder):
    encoder = build_image_encoder(f"hf/{clip_folder}").eval()
    clip = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        output = encoder(pixels(encoder.preprocess), tokens=True)
        expected = clip.vision_model(pixel_values=pixels(encoder.preprocess))
    assert torch.equal(output.features, expected.pooler_output)
    assert output.tokens.shape == (2, 17, 16)
    assert encoder.preprocess == Preprocess(32, crop=0.8, mean=CLIP_MEAN, std=(0.5, 0.5, 0.5))


def test_a_hugging_face_encoder_is_rebuilt_without_its_folder(clip_folder):
    encoder = build_image_encoder(f"hf/{clip_folder}")
    options = json.loads(json.dumps(encoder.rebuild_options))
    again = build_image_encoder("hf/gone", **options)
    again.load_state_dict(encoder.state_dict())
    assert again.preprocess == encoder.preprocess


@pytest.mark.parametrize("model_type", ["dinov2", "convnext", "resnet", "vit"])
def test_other_hugging_face_vision_models_give_features_of_their_width(model_type, tmp_path):
    small = (
        {**VISION, "mlp_ratio": 2}
        if model_type in ("dinov2", "vit")
        else {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "embedding_size": 8}
    )
    config = transformers.AutoConfig.for_model(model_type, **small).to_dict()
    preprocess = {"size": 32}
    encoder = build_image_encoder("hf/x", config=config, preprocess=preprocess).eval()
    with torch.no_grad():
        output = encoder(pixels(encoder.preprocess), tokens=True)
    assert encoder.feature_dim == 16
    assert output.features.shape == (2, 16)
    assert output.tokens.shape[2] == 16


def test_hugging_face_folders_that_cannot_be_used_are_refused(clip_folder, tmp_path):
    with pytest.raises(InputError, match="cannot be built"):
        build_image_encoder(f"hf/{tmp_path / 'nowhere'}")
    (clip_folder / "model.safetensors").rename(clip_folder / "kept")
    torch.save({}, clip_folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be built"):
        build_image_encoder(f"hf/{clip_folder}")
    text = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    with pytest.raises(InputError, match="takes no images"):
        build_image_encoder("hf/x", config=text.to_dict(), preprocess={})


def test_code_that_comes_with_a_folder_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be built"):
        build_image_encoder(f"hf/{tmp_path}")
    assert not (tmp_path / "ran").exists()
