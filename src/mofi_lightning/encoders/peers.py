"""Models of other libraries behind the interface of `DualEncoder`: Hugging Face's CLIP and SigLIP, open_clip.

Each keeps its library's own preprocessing and tokenizer, so its embeddings are those it gives there. Nothing
is unpickled but through torch's weights-only loader, and no code that comes with weights runs.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.dual_encoder import load
from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)

_OPEN_CLIP = "open_clip:"
_FORMS = f"a model folder, a checkpoint, a hub id OWNER/NAME, or {_OPEN_CLIP}ARCHITECTURE=PATH"


def load_encoder(name: str) -> nn.Module:
    """Load an image-text model on the CPU, in evaluation mode, with what curation and evaluation use.

    That is `preprocess(uint8 [3, H, W])`, `encode_image(batch)` and `encode_text(texts)`, which give
    L2-normalised fp32 `[B, D]`, and `text`, which is not None.

    Args:
        name: folder or checkpoint of a `DualEncoder`, or folder of its training run; folder or hub id of a
            Hugging Face model with `get_image_features` and `get_text_features`, such as CLIP and SigLIP; or
            `open_clip:ARCHITECTURE=PATH`, for instance `open_clip:ViT-B-32=weights.safetensors`
            (see `OpenClipEncoder.load` for its preprocessing).

    Raises:
        InputError: nothing is there, it cannot be read safely, its library is not installed, or it does not
            embed images and texts in one space.
    """
    if name.startswith(_OPEN_CLIP):
        return OpenClipEncoder.load(*_architecture(name))
    path = Path(name)
    if not path.exists() and (path.is_absolute() or name.count("/") != 1 or name.startswith(".")):
        raise InputError(f"no model at {name}; give {_FORMS}")
    if path.exists() and (checkpoint.is_model(path) or not (path / "config.json").is_file()):
        model = load(path)
        if model.text is None:
            raise InputError(f"model {name} has no text encoder; comparing images with entities needs one")
        return model
    return HuggingFaceEncoder.load(name)


class PeerEncoder(nn.Module, ABC):
    """A model of another library.

    Attributes:
        text: what embeds texts.
        label_space: None.
    """

    label_space = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def text(self) -> nn.Module:
        """The module that embeds texts: these models hold both towers in one."""
        return self.model

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return next(self.model.parameters()).device

    @abstractmethod
    def preprocess(self, image: Tensor) -> Tensor:
        """Bring uint8 `[3, H, W]` to the float `[3, H', W']` that the model takes, normalised."""

    @abstractmethod
    def encode_image(self, image: Tensor) -> Tensor:
        """Preprocessed images `[B, 3, H', W']` to L2-normalised fp32 `[B, D]`."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts, cut to what the model takes, to L2-normalised fp32 `[B, D]`."""


class HuggingFaceEncoder(PeerEncoder):
    """A model of transformers with image and text features in one space.

    Args:
        model: with `get_image_features` and `get_text_features`.
        image_processor: its preprocessing.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        config = cast(Any, model.config)
        # SigLIP was trained on padded texts without a mask, whatever else its tokenizer gives, and reads the
        # last position; with others, padding changes nothing
        siglip = config.model_type.startswith("siglip")
        self._padding: bool | str = "max_length" if siglip else True
        self._taken = {"input_ids"} if siglip else set(tokenizer.model_input_names)
        self._most_tokens = most_tokens(model, tokenizer, config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, name: str) -> HuggingFaceEncoder:
        """Load the folder or hub id `name`; of a folder, nothing is looked up elsewhere.

        Raises:
            InputError: it cannot be loaded, lacks weights, does not embed images and texts in one space, or
                takes images of several sizes.
        """
        import transformers

        options: dict[str, Any] = {"local_files_only": Path(name).is_dir(), "trust_remote_code": False}
        try:
            loaded: Any = transformers.AutoModel.from_pretrained(
                name, dtype=torch.float32, weights_only=True, output_loading_info=True, **options
            )
            model, information = loaded
            if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
                raise InputError(
                    f"model {name} is of type {model.config.model_type!r}, which does not embed images and "
                    f"texts in one space; give a CLIP or SigLIP"
                )
            processor = transformers.AutoImageProcessor.from_pretrained(name, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            probes = [
                processor(
                    images=torch.zeros(3, *shape, dtype=torch.uint8),
                    return_tensors="pt",
                    input_data_format="channels_first",
                )
                for shape in ((40, 60), (60, 40))
            ]
        except InputError:
            raise
        except Exception as error:  # transformers, hub and safetensors each raise kinds of their own
            raise InputError(
                f"model {name} cannot be loaded by transformers: {_line(error)}; give {_FORMS}"
            ) from error
        if missing := sorted(information["missing_keys"]):
            raise InputError(
                f"model {name} lacks {len(missing)} of its weights, such as {missing[0]}, which would be "
                "random; save or download it again"
            )
        if (taken := set(probes[0])) != {"pixel_values"}:
            raise InputError(
                f"model {name} takes {', '.join(sorted(taken))}, not just pixels of one size; "
                "give a model of a fixed resolution"
            )
        wide, high = (tuple(probe["pixel_values"].shape[-2:]) for probe in probes)
        if wide != high:
            raise InputError(
                f"model {name} brings wide images to {wide} and high ones to {high}, not to one size; "
                "set do_resize and do_center_crop in its preprocessor_config.json"
            )
        return cls(model, processor, tokenizer).eval()

    def preprocess(self, image: Tensor) -> Tensor:
        """See `PeerEncoder`; by the model's image processor."""
        pixels: Tensor = self._image_processor(
            images=image, return_tensors="pt", input_data_format="channels_first"
        )["pixel_values"][0]
        return pixels

    def encode_image(self, image: Tensor) -> Tensor:
        """See `PeerEncoder`."""
        return _normalised(cast(Any, self.model).get_image_features(pixel_values=image))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `PeerEncoder`."""
        tokens = self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._most_tokens,
            return_tensors="pt",
        )
        taken = {name: ids.to(self.device) for name, ids in tokens.items() if name in self._taken}
        return _normalised(cast(Any, self.model).get_text_features(**taken))


class OpenClipEncoder(PeerEncoder):
    """A model of open_clip.

    Args:
        model: with `encode_image` and `encode_text`.
        transform: PIL image to pixels.
        tokenizer: texts to token ids.
    """

    def __init__(self, model: nn.Module, transform: Any, tokenizer: Any) -> None:
        super().__init__(model)
        self._transform = transform
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, architecture: str, path: Path) -> OpenClipEncoder:
        """Load the checkpoint `path` into `architecture`, one of `open_clip.list_models()`.

        A file of weights does not say how images are preprocessed, nor which GELU it was trained with. Both
        are those of the weights that open_clip lists for the architecture, so far as these agree (SigLIP,
        CLIPA, MobileCLIP). Where they differ or there are none, they are OpenAI's preprocessing and the
        architecture's own GELU; name `ViT-B-32-quickgelu` and its kind for weights trained with QuickGELU.

        Raises:
            InputError: open_clip is not installed, does not know the architecture, or cannot load the file.
        """
        try:
            import open_clip
        except ImportError as error:
            raise InputError(
                f"{_OPEN_CLIP}{architecture} needs open_clip; pip install open-clip-torch brings it"
            ) from error

        if architecture not in open_clip.list_models():
            raise InputError(
                f"open_clip has no architecture {architecture!r}; `open_clip.list_models()` lists them"
            )
        if not path.is_file():
            raise InputError(f"no open_clip checkpoint at {path}; give {_OPEN_CLIP}ARCHITECTURE=PATH")
        try:
            model, transform = open_clip.create_model_from_pretrained(
                architecture, pretrained=str(path), weights_only=True, **_listed_settings(architecture)
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # open_clip, torch and safetensors each raise kinds of their own
            raise InputError(
                f"open_clip cannot load {path} as {architecture}: {_line(error)}; give the weights of this "
                "architecture, as safetensors or as a state dict that torch loads with weights_only"
            ) from error
        return cls(model, transform, tokenizer).eval()

    def preprocess(self, image: Tensor) -> Tensor:
        """See `PeerEncoder`; by the model's transform, which takes images of PIL."""
        from torchvision.transforms.v2.functional import to_pil_image

        pixels: Tensor = self._transform(to_pil_image(image))
        return pixels

    def encode_image(self, image: Tensor) -> Tensor:
        """See `PeerEncoder`."""
        return _normalised(cast(Any, self.model).encode_image(image))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `PeerEncoder`."""
        return _normalised(cast(Any, self.model).encode_text(self._tokenizer(list(texts)).to(self.device)))


def most_tokens(model: nn.Module, tokenizer: Any, positions: int) -> int:
    """How many tokens a model of transformers reads of a text.

    Args:
        model: its positions count from 0, or, as in RoBERTa, XLM-R and AltCLIP, from after its padding id.
        tokenizer: of the model; may know no limit.
        positions: `max_position_embeddings` of the configuration.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= cast(int, module.padding_idx) + 1
            break
    return min(positions, int(tokenizer.model_max_length))


def _listed_settings(architecture: str) -> dict[str, Any]:
    """Preprocessing and GELU that all weights that open_clip lists for `architecture` share."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    settings = [
        {
            "image_mean": listed["mean"],
            "image_std": listed["std"],
            "image_interpolation": listed["interpolation"],
            "image_resize_mode": listed["resize_mode"],
            "force_quick_gelu": listed.get("quick_gelu", False),
        }
        for listed in (open_clip.get_pretrained_cfg(architecture, tag) for tag in tags)
    ]
    if not settings:
        return {}
    shared = {key: value for key, value in settings[0].items() if all(x[key] == value for x in settings)}
    if differing := sorted(settings[0].keys() - shared.keys() - {"force_quick_gelu"}):
        _log.warning(
            "weights of open_clip's %s differ in %s; taking OpenAI's", architecture, ", ".join(differing)
        )
    return shared


def _architecture(name: str) -> tuple[str, Path]:
    architecture, equals, path = name.removeprefix(_OPEN_CLIP).partition("=")
    if not (architecture and equals and path):
        raise InputError(f"model {name!r} is not of the form {_OPEN_CLIP}ARCHITECTURE=PATH")
    return architecture, Path(path)


def _normalised(features: Any) -> Tensor:
    # transformers returns the tower's whole output, with the projected features as what was pooled
    pooled = getattr(features, "pooler_output", features)
    return functional.normalize(pooled.float(), dim=-1)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
