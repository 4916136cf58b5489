"""Depths of parameters in their encoders."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from mofi_lightning.training.optimization.layer_decay import block_depths


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_clip_224", "vit_base_patch16_224", "beit_base_patch16_224"]
)
def test_a_vit_with_a_head_has_timms_factors(name):
    with torch.device("meta"):
        vit = timm.create_model(name, num_classes=8)
    expected = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(vit, layer_decay=0.75)
        for parameter in group["params"]
    }
    depths = block_depths(vit)
    names = dict(vit.named_parameters())
    assert depths.keys() == names.keys()
    assert max(depths.values()) == 13
    for parameter_name, parameter in names.items():
        # timm's ViTs count the last norm to the last block; BEiT, timm's BEiTs and we to the head
        joined = name.startswith("vit") and parameter_name.startswith("norm.")
        assert 0.75 ** (depths[parameter_name] + joined) == pytest.approx(expected[id(parameter)])


def test_a_clip_text_tower_counts_from_its_final_norm():
    text = CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3))
    found: dict[int, set[str]] = {}
    for name, depth in block_depths(text).items():
        short = ".".join(name.removeprefix("text_model.").split(".")[:3])
        found.setdefault(depth, set()).add(short if "layers" in short else short.partition(".")[0])
    assert found == {
        4: {"embeddings"},
        3: {"encoder.layers.0"},
        2: {"encoder.layers.1"},
        1: {"encoder.layers.2"},
        0: {"final_layer_norm"},
    }


def test_what_stands_between_stages_goes_with_the_block_before_it():
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    tower = nn.Sequential()
    tower.stem = nn.Linear(4, 4)
    tower.first = nn.ModuleList([block(), block()])
    tower.merging = nn.Linear(4, 4)
    tower.second = nn.ModuleList([block(), block()])
    tower.norm = nn.LayerNorm(4)
    found = {name: depth for name, depth in block_depths(tower).items() if name.endswith("weight")}
    by_part = {name.rpartition(".")[0]: depth for name, depth in found.items()}
    assert by_part == {
        "stem": 5,
        "first.0.0": 4,
        "first.0.1": 4,
        "first.1.0": 3,
        "first.1.1": 3,
        "merging": 3,
        "second.0.0": 2,
        "second.0.1": 2,
        "second.1.0": 1,
        "second.1.1": 1,
        "norm": 0,
    }


def test_a_tower_without_blocks_has_depth_0_everywhere():
    assert set(block_depths(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))).values()) == {0}
