import pytest
import torch

from mofi_lightning.distributed.parallelize import checkpoint_activations
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.training.planning.flops import image_flops, text_flops
from mofi_lightning.types import InputError


def transformer(width: int, layers: int, tokens: int) -> int:
    """Projections (4 d^2) and MLP (8 d^2) of every token, and two products over pairs of tokens."""
    return 2 * layers * (12 * width**2 * tokens + 2 * tokens**2 * width)


@pytest.fixture(scope="module")
def b16() -> DualEncoder:
    with torch.device("meta"):
        return DualEncoder.from_config(
            DualEncoderConfig("mofi/b16", embed_dim=512, text=TextConfig(512, 12, 8, 76))
        )


def test_an_image_of_b16_takes_what_the_equations_of_a_vit_give(b16):
    patches, projection = 2 * 196 * 768 * (16 * 16 * 3), 2 * 768 * 512
    assert image_flops(b16) == transformer(768, 12, 197) + patches + projection  # 35.1 G


@pytest.mark.parametrize("tokens", [8, 76])
def test_a_text_takes_what_the_equations_of_a_transformer_give(b16, tokens):
    assert text_flops(b16, tokens) == transformer(512, 12, tokens) + 2 * 512 * 512


def test_what_training_laid_over_the_encoder_does_not_change_its_operations(b16):
    with torch.device("meta"):
        model = DualEncoder.from_config(b16.config, b16.tokenizer)
    checkpoint_activations(model.image)
    assert image_flops(model) == image_flops(b16)


def test_a_model_of_images_only_has_no_text_operations():
    with pytest.raises(InputError, match="no text encoder"):
        text_flops(DualEncoder.from_config(DualEncoderConfig()), 8)
