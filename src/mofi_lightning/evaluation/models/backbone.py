"""Backbones of the registry, as their pretrained features."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mofi_lightning import entry_points
from mofi_lightning.complaints import near
from mofi_lightning.encoders.base import BackboneLibrary, ImageEncoder
from mofi_lightning.encoders.registry import build_image_encoder
from mofi_lightning.encoders.towers import ImageTower
from mofi_lightning.types import InputError

LIBRARY = "backbone library"


class BackboneModel(nn.Module):
    """An image encoder whose normalised features are the embedding.

    Args:
        encoder: with the weights to measure.

    Attributes:
        preprocess: the encoder's; its mean and standard deviation are applied in `encode_image`.
        text: None.
        label_space: None.
    """

    text = None
    label_space = None

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.preprocess = encoder.preprocess
        self._tower = ImageTower(encoder, None, encoder.preprocess)

    def encode_image(self, image: Tensor) -> Tensor:
        """Preprocessed images `[B, 3, H, W]` to their features `[B, F]`, L2-normalised, fp32."""
        return self.encode_image_and_features(image)[0]

    def encode_image_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, F]` of preprocessed images, L2-normalised and as they are, fp32."""
        features = self._tower(image).features.to(torch.float32)
        return functional.normalize(features, dim=1), features

    def encode_text(self, texts: Sequence[str]) -> NoReturn:
        """Backbones cannot embed text."""
        raise InputError("a backbone has no text tower")


def load_backbone(name: str, weights: Path | None = None) -> BackboneModel:
    """Build the pretrained backbone `PREFIX/NAME` on the CPU, in evaluation mode.

    Args:
        name: as `mofi backbones` lists them; of timm with the tag of its weights.
        weights: a safetensors file of weights; None for those of the library.

    Raises:
        InputError: no such backbone, it has no pretrained weights, or its library takes no file of weights.
    """
    library = _library(name)
    if "pretrained" not in inspect.signature(library.build).parameters:
        raise InputError(
            f"backbone {name} has no pretrained weights: what it gives would be random; give the folder or "
            "the checkpoint of a model that was trained with it"
        )
    options: dict[str, Any] = {"pretrained": True}
    if weights is not None:
        check_weights(name, weights)
        options = {"pretrained": str(weights)}
    encoder = build_image_encoder(name, **options)
    return BackboneModel(encoder).eval()


def check_weights(name: str, weights: Path) -> None:
    """Refuse a file of weights that cannot be one of the backbone `PREFIX/NAME`; it is not opened.

    Raises:
        InputError: no such backbone or file, or its library takes no file of weights.
    """
    prefix, _, rest = name.partition("/")
    library = _library(name)
    if str not in typing.get_args(typing.get_type_hints(library.build).get("pretrained")):
        raise InputError(f"backbones of {prefix} take no file of weights; leave out ={weights}")
    known = library().names()
    if rest not in known and rest.partition(".")[0] not in known:
        raise InputError(
            f"{prefix} has no model {rest!r}{near(rest, known)}; `mofi backbones '{prefix}/*'` lists them"
        )
    if not weights.is_file():
        raise InputError(f"no weights at {weights}; give a safetensors file of {rest}")


def _library(name: str) -> type[BackboneLibrary]:
    return cast("type[BackboneLibrary]", entry_points.load_kind(name.partition("/")[0], LIBRARY))


def is_backbone(word: str) -> bool:
    """Whether `word`, which is no path, begins with the prefix of an installed library of backbones."""
    prefix, slash, _ = word.partition("/")
    if not slash or prefix not in entry_points.names() or Path(word).exists():
        return False
    return issubclass(entry_points.load(prefix), BackboneLibrary)
