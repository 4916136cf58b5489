"""Image encoders of timm and of Hugging Face."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from timm.data import resolve_data_config
from torch import Tensor, nn

from mofi_lightning.encoders.base import BackboneLibrary, EncoderOutput, ImageEncoder
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError


class TimmEncoder(ImageEncoder):
    """A timm model without its classifier.

    Args:
        model: built with `num_classes=0`.
        preprocess: what the model expects.
        rebuild_options: see `ImageEncoder`.
    """

    def __init__(
        self, model: Any, preprocess: Preprocess, rebuild_options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.feature_dim = model.head_hidden_size
        self.preprocess = preprocess
        self.rebuild_options = rebuild_options

    def forward(self, pixels: Tensor, tokens: bool = False) -> EncoderOutput:
        """Pooled features as timm pools them; tokens are the positions of the last feature map.

        In the few models whose head widens the features before pooling, tokens are narrower than F.
        """
        grid = self.model.forward_features(pixels)
        features = self.model.forward_head(grid, pre_logits=True)
        if not tokens:
            return EncoderOutput(features)
        if grid.ndim == 4:
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            grid = grid.flatten(1, 2) if channels_last else grid.flatten(2).transpose(1, 2)
        return EncoderOutput(
            features, grid, torch.ones(grid.shape[:2], dtype=torch.int64, device=grid.device)
        )


class TimmLibrary(BackboneLibrary):
    """Every model of timm: `timm/vit_base_patch16_clip_224.openai`, with or without the tag."""

    prefix = "timm"

    def names(self) -> list[str]:
        """All architectures, without the tags of their weights."""
        return timm.list_models()

    def build(self, name: str, pretrained: bool | str = False, **options: Any) -> TimmEncoder:
        """Build the timm model `name`.

        Args:
            name: `architecture` or `architecture.tag`.
            pretrained: true loads timm's weights for the tag from the hub; a path loads a safetensors file.
            options: timm's own, such as `img_size`, `drop_path_rate`.

        Raises:
            InputError: unknown name, tag or option, or weights that cannot be read.
        """
        if not timm.is_model(name):
            near = difflib.get_close_matches(name.partition(".")[0], self.names(), 3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "`mofi backbones` lists them"
            raise InputError(f"timm has no model {name!r}; {hint}")
        model = _create_timm(name, pretrained, options)
        size = {"img_size": options["img_size"]} if "img_size" in options else {}
        data = resolve_data_config(size, model=model)
        preprocess = Preprocess(
            size=data["input_size"][-1],
            resize="squash" if data["crop_mode"] == "squash" else "shortest",
            crop=data["crop_pct"],
            interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
            mean=data["mean"],
            std=data["std"],
        )
        return TimmEncoder(model, preprocess, rebuild_options=options)


def _create_timm(name: str, pretrained: bool | str, options: dict[str, Any]) -> nn.Module:
    weights: dict[str, Any] = {}
    if isinstance(pretrained, str):
        if Path(pretrained).suffix != ".safetensors" or not Path(pretrained).is_file():
            raise InputError(
                f"pretrained weights {pretrained!r} are no safetensors file; give true, false or one"
            )
        weights = {"pretrained_cfg_overlay": {"file": pretrained, "custom_load": False}}
    try:
        return timm.create_model(name, pretrained=bool(pretrained), num_classes=0, **weights, **options)
    except Exception as error:  # options, hub, file: each library below raises kinds of its own
        raise InputError(f"timm/{name} cannot be built: {_first_line(error)}") from error


class HuggingFaceEncoder(ImageEncoder):
    """A vision model of transformers.

    Args:
        model: takes `pixel_values` and gives `last_hidden_state`; without a pooler, the mean of its tokens is
            the feature.
        preprocess: what the model expects.
        rebuild_options: see `ImageEncoder`.
    """

    def __init__(self, model: Any, preprocess: Preprocess, rebuild_options: dict[str, Any]) -> None:
        super().__init__()
        self.model: Any = model
        config = self.model.config
        self.feature_dim: int = (
            config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]
        )
        self.preprocess = preprocess
        self.rebuild_options = rebuild_options

    def forward(self, pixels: Tensor, tokens: bool = False) -> EncoderOutput:
        """Features of the model's pooler; tokens are its last hidden state."""
        output = self.model(pixel_values=pixels)
        hidden = output.last_hidden_state
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        pooled = getattr(output, "pooler_output", None)
        features = hidden.mean(1) if pooled is None else pooled.flatten(1)
        if not tokens:
            return EncoderOutput(features)
        return EncoderOutput(
            features, hidden, torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        )


class HuggingFaceLibrary(BackboneLibrary):
    """Vision models of transformers, the image tower of a CLIP included: `hf/ID` or `hf/FOLDER`.

    Only safetensors are read, and no code that comes with a model is run.
    """

    prefix = "hf"

    def names(self) -> list[str]:
        """None: the hub is not listed."""
        return []

    def build(  # type: ignore[override]
        self,
        name: str,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        preprocess: dict[str, Any] | None = None,
    ) -> HuggingFaceEncoder:
        """Build the vision model of the hub id or folder `name`.

        Args:
            name: hub id or local folder.
            pretrained: false builds the architecture with fresh weights.
            config: the vision model's configuration; with it, nothing of `name` is read.
            preprocess: fields of `Preprocess`; None takes them from the model's image processor.

        Raises:
            InputError: nothing usable is there, or it is no vision model.
        """
        try:
            if config is not None:
                model = transformers.AutoModel.from_config(
                    transformers.AutoConfig.for_model(**config), trust_remote_code=False
                )
            else:
                model = _vision_model(name, pretrained)
            geometry = _processor(name) if preprocess is None else Preprocess(**_with_tuples(preprocess))
        except InputError:
            raise
        except Exception as error:  # transformers, hub and safetensors each raise kinds of their own
            raise InputError(f"hf/{name} cannot be built: {_first_line(error)}") from error
        if model.main_input_name != "pixel_values":
            raise InputError(
                f"hf/{name} is a {type(model).__name__}, which takes no images; name a vision model"
            )
        rebuild = {"config": model.config.to_dict(), "preprocess": vars(geometry)}
        return HuggingFaceEncoder(model, geometry, rebuild)


def _vision_model(name: str, pretrained: bool) -> Any:
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if pretrained:
        model = transformers.AutoModel.from_pretrained(
            name, config=config, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    else:
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return model.vision_model if hasattr(config, "vision_config") else model


def _processor(name: str) -> Preprocess:
    """Geometry and statistics of a `preprocessor_config.json`."""
    values, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    size = values.get("size", 224)
    shortest = "shortest_edge" in size if isinstance(size, dict) else True
    resized = int((size.get("shortest_edge") or size["height"]) if isinstance(size, dict) else size)
    crop = values.get("crop_size", resized)
    cropped = (
        (crop["height"] if isinstance(crop, dict) else crop) if values.get("do_center_crop") else resized
    )
    return Preprocess(
        size=cropped,
        resize="shortest" if shortest else "squash",
        crop=cropped / resized,
        interpolation="bilinear" if values.get("resample") == 2 else "bicubic",  # Pillow's number
        mean=tuple(values["image_mean"]),
        std=tuple(values["image_std"]),
    )


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
