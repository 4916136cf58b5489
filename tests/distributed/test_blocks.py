"""Which modules of real encoders are blocks; depths and names as published or as their sources build them."""

import functools

import pytest
import timm
import torch
import transformers
from torch import nn

from mofi_lightning.distributed.blocks import encoder_blocks
from mofi_lightning.encoders.registry import build_image_encoder

# name, options, number of blocks, first and last
TIMM = [
    ("vit_base_patch16_clip_224", {}, 12, "blocks.0", "blocks.11"),  # CLIP, table 20
    ("vit_large_patch14_clip_224", {}, 24, "blocks.0", "blocks.23"),
    ("vit_huge_patch14_clip_224", {}, 32, "blocks.0", "blocks.31"),
    ("vit_base_patch16_siglip_224", {}, 12, "blocks.0", "blocks.11"),
    ("eva02_base_patch14_224", {}, 12, "blocks.0", "blocks.11"),
    ("vit_small_patch16_18x2_224", {}, 18, "blocks.0", "blocks.17"),  # two branches of attention within each
    ("convnext_tiny", {}, 3 + 3 + 9 + 3, "stages.0.blocks.0", "stages.3.blocks.2"),
    ("swin_tiny_patch4_window7_224", {}, 2 + 2 + 6 + 2, "layers.0.blocks.0", "layers.3.blocks.1"),
    ("focalnet_tiny_srf", {}, 2 + 2 + 6 + 2, "layers.0.blocks.0", "layers.3.blocks.1"),
    ("resnet18", {}, 2 + 2 + 2 + 2, "layer1.0", "layer4.1"),
    ("resnet50", {}, 3 + 4 + 6 + 3, "layer1.0", "layer4.2"),
    ("skresnet34", {}, 3 + 4 + 6 + 3, "layer1.0", "layer4.2"),
    ("efficientnet_b0", {}, 1 + 2 + 2 + 3 + 3 + 4 + 1, "blocks.0.0", "blocks.6.0"),
    ("vit_base_r50_s16_224", {}, 3 + 4 + 9 + 12, "patch_embed.backbone.stages.0.blocks.0", "blocks.11"),
]
HUGGING_FACE = [
    ("CLIPVisionModel", "CLIPVisionConfig", 12, "encoder.layers.0", "encoder.layers.11"),
    ("CLIPTextModel", "CLIPTextConfig", 12, "encoder.layers.0", "encoder.layers.11"),
    ("SiglipVisionModel", "SiglipVisionConfig", 12, "encoder.layers.0", "encoder.layers.11"),
    ("Dinov2Model", "Dinov2Config", 12, "encoder.layer.0", "encoder.layer.11"),
    ("ViTModel", "ViTConfig", 12, "layers.0", "layers.11"),
    ("ConvNextModel", "ConvNextConfig", 18, "encoder.stages.0.layers.0", "encoder.stages.3.layers.2"),
    ("SwinModel", "SwinConfig", 12, "encoder.layers.0.blocks.0", "encoder.layers.3.blocks.1"),
    ("ResNetModel", "ResNetConfig", 16, "encoder.stages.0.layers.0", "encoder.stages.3.layers.2"),
]


def names_of_blocks(model: nn.Module) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in encoder_blocks(model)]


def share_of_parameters(model: nn.Module) -> float:
    within = {id(p): p.numel() for block in encoder_blocks(model) for p in block.parameters()}
    return sum(within.values()) / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name, options, number, first, last", TIMM, ids=lambda value: str(value))
def test_blocks_of_timm_encoders(name, options, number, first, last):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **options)
    names = names_of_blocks(model)
    assert (len(names), names[0], names[-1]) == (number, first, last)
    assert share_of_parameters(model) > 0.85


def test_a_vit_whose_blocks_run_attention_and_mlp_in_parallel_has_its_twelve_blocks():
    block = timm.models.vision_transformer.ParallelScalingBlock
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch16_224", block_fn=block, num_classes=0)
    assert names_of_blocks(model) == [f"blocks.{number}" for number in range(12)]


@pytest.mark.parametrize("model, config, number, first, last", HUGGING_FACE, ids=lambda value: str(value))
def test_blocks_of_hugging_face_encoders(model, config, number, first, last):
    with torch.device("meta"):
        built = getattr(transformers, model)(getattr(transformers, config)())
    names = names_of_blocks(built)
    assert (len(names), names[0], names[-1]) == (number, first, last)


def test_the_tiny_encoder_has_one_block_in_each_of_its_four_stages():
    names = names_of_blocks(build_image_encoder("mofi/tiny"))
    assert names == [f"model.stages.{stage}.blocks.0" for stage in range(4)]


def test_blocks_are_disjoint_and_in_the_order_of_the_modules():
    for build in (
        functools.partial(timm.create_model, "fastvit_s12", num_classes=0),
        functools.partial(timm.create_model, "vit_small_patch16_18x2_224", num_classes=0),
        functools.partial(transformers.ResNetModel, transformers.ResNetConfig()),
    ):
        with torch.device("meta"):
            model = build()
        names = names_of_blocks(model)
        order = [name for name, _ in model.named_modules() if name in set(names)]
        assert names == order
        assert not [n for n in names if any(n.startswith(f"{other}.") for other in names)]


def test_a_model_that_repeats_nothing_has_no_blocks():
    assert encoder_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    with torch.device("meta"):
        assert encoder_blocks(timm.create_model("vgg11", num_classes=0)) == []


def test_the_efficientnet_lite_plugin_has_the_sixteen_blocks_of_its_seven_stages():
    pytest.importorskip("mofi_efficientnet_lite")
    with torch.device("meta"):
        names = names_of_blocks(build_image_encoder("efficientnet_lite/lite0"))
    stages = [1, 2, 2, 3, 3, 4, 1]  # arXiv 1905.11946, table 1
    assert [name.rpartition("blocks.")[2] for name in names] == [
        f"{stage}.{number}" for stage, repeats in enumerate(stages) for number in range(repeats)
    ]
