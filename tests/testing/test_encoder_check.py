"""The kit for encoders finds each fault, names it, and finds none in what the library ships."""

import re

import pytest
from tests.testing import broken_encoders as broken
from torch import nn

from mofi_lightning.encoders.registry import build_image_encoder
from mofi_lightning.encoders.text import CLIPTextEncoder, TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.testing import check_encoder

FAULTS = {
    broken.NoPreprocess: r"contract: `preprocess` is no Preprocess",
    broken.NoContextLength: r"contract: `context_length` is None",
    broken.ZeroDimensional: r"contract: parameter 'gain' is 0-D",
    broken.PercentCrop: r"preprocess: `preprocess.crop` is 87.5",
    broken.OtherWidth: r"features: features are \(3, 6\), not \[B, feature_dim\] = \(3, 7\)",
    broken.SameForAll: r"features: two different inputs",
    broken.UnaskedTokens: r"features: tokens are returned without being asked for",
    broken.NoTokens: r"tokens: tokens=True gives no tokens",
    broken.TokensMoveFeatures: r"tokens: features are others when tokens are asked for",
    broken.NarrowTokens: r"tokens: tokens are \(3, 4, 3\), not \[B, T, feature_dim\] = \(3, 4, 6\)",
    broken.UnusedParameter: r"gradients: none reaches parameter 'head.weight'",
    broken.LooksAcrossTheBatch: r"rows: in eval mode the features of a row depend on the other rows",
    broken.DropoutInEval: r"eval mode: draws from the global generator of torch",
    broken.CountsInEval: r"eval mode: 'norm.num_batches_tracked' of the state dict changes",
    broken.Fp32Buffer: r"bf16: with bf16 parameters and fp32 buffers, raises .*broken_encoders.py",
    broken.WeightOutsideTheState: r"state dict: an encoder that loaded the state of another",
    broken.ReadsPadding: r"padding: features depend on what stands behind a text",
    broken.TooFewPlaces: r"lengths: a text of 40 tokens raises RuntimeError",
}


def findings(factory) -> list[str]:
    with pytest.raises(AssertionError) as caught:
        check_encoder(factory)
    return [line for line in str(caught.value).splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("encoder", FAULTS, ids=lambda encoder: encoder.__name__)
def test_a_fault_is_found_and_named(encoder):
    (found,) = findings(encoder)
    assert re.match(f"- {FAULTS[encoder]}", found), found


def test_what_the_faults_were_put_into_has_none():
    report = check_encoder(broken.RightImage)
    assert (report.name, report.feature_dim, report.tokens) == ("RightImage", 6, 4)
    assert "RightImage (0.00117 M parameters, features of 6, 4 tokens) passes 9 checks" in str(report)
    assert "padding" in check_encoder(broken.RightText).checks


HF = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
HF |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    "name, options",
    (
        ("mofi/tiny", {}),
        ("timm/resnet10t", {}),
        ("timm/vit_tiny_patch16_224", {"img_size": 32}),
        ("hf/none", {"config": HF, "preprocess": {"size": 32}}),
    ),
)
def test_the_image_encoders_of_the_library_pass(name, options):
    check_encoder(lambda: build_image_encoder(name, **options))


def test_the_text_encoder_of_the_library_passes():
    tokenizer = Tokenizer.train(["ba do fi"] * 9, 280)
    check_encoder(lambda: CLIPTextEncoder(TextConfig(32, 2, 2, 32), tokenizer), tokenizer=tokenizer)


def test_what_is_no_encoder_is_refused():
    assert "derive from ImageEncoder or TextEncoder" in findings(lambda: nn.Linear(2, 2))[0]
