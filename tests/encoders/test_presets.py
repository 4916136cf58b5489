import pytest
import torch
from torch import nn

from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.presets import TEXT_CONFIGS, MofiLibrary
from mofi_lightning.encoders.registry import build_image_encoder
from mofi_lightning.encoders.tokenizer import Tokenizer


class OptSized(Tokenizer):
    """The vocabulary's size is all that the parameter count takes from OPT's tokenizer."""

    vocab_size = 50_265


@pytest.mark.parametrize(
    ("name", "dim", "image_millions", "text_millions"),
    [("b16", 512, 86, 64), ("l14", 768, 303, 124), ("h14", 1024, 631, 354)],
)
def test_mofis_sizes_are_the_published_ones(name, dim, image_millions, text_millions):
    tokenizer = OptSized.train([], 259)
    with torch.device("meta"):
        config = DualEncoderConfig(f"mofi/{name}", embed_dim=dim, text=TEXT_CONFIGS[name])
        model = DualEncoder.from_config(config, tokenizer)

    def millions(module: nn.Module) -> int:
        return round(sum(p.numel() for p in module.parameters()) / 1e6)

    assert millions(model.image.encoder) == image_millions
    assert millions(model.text.encoder) == text_millions
    assert model.preprocess == Preprocess(224, interpolation="bilinear", antialias=False, resize_on="float")


def test_tiny_is_small_and_looks_at_one_image_at_a_time():
    torch.manual_seed(0)
    encoder = build_image_encoder("mofi/tiny").train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    assert sum(p.numel() for p in encoder.parameters()) < 1e6
    pixels = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(encoder(pixels).features[:2], encoder(pixels[:2]).features)


def test_every_preset_is_listed():
    assert MofiLibrary().match("*") == ["mofi/tiny", "mofi/b16", "mofi/l14", "mofi/h14"]
