"""From what a user writes to a model of ours or of another library."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.dual_encoder import load
from mofi_lightning.encoders.peers.hugging_face import HuggingFaceEncoder
from mofi_lightning.encoders.peers.open_clip import PREFIX, OpenClipEncoder
from mofi_lightning.types import InputError

MOFI_RELEASE = "hf_mofi:"
FORMS = (
    f"a model folder, a checkpoint, a hub id OWNER/NAME, {MOFI_RELEASE}FOLDER for weights of MOFI's authors, "
    f"or {PREFIX}ARCHITECTURE=PATH"
)


def load_encoder(name: str) -> nn.Module:
    """Load an image-text model on the CPU, in evaluation mode, with what curation and evaluation use.

    That is `preprocess(uint8 [3, H, W])`, `encode_image(batch)` and `encode_text(texts)`, which give
    L2-normalised fp32 `[B, D]`, and `text`, which is not None.

    Args:
        name: see `load_model`.

    Raises:
        InputError: as `load_model`, or the model does not embed texts.
    """
    model = load_model(name)
    if model.text is None:
        raise InputError(f"model {name} has no text encoder; comparing images with entities needs one")
    return model


def load_model(name: str) -> nn.Module:
    """Load a model on the CPU, in evaluation mode; unlike those of `load_encoder` it may be of images only.

    Args:
        name: folder or checkpoint of a `DualEncoder`, or folder of its training run; folder or hub id of a
            Hugging Face model with `get_image_features` and `get_text_features`, such as CLIP and SigLIP;
            `hf_mofi:FOLDER` for one that holds weights released by MOFI's authors, whose transform no
            `preprocessor_config.json` can express; or `open_clip:ARCHITECTURE=PATH`, for instance
            `open_clip:ViT-B-32=weights.safetensors` (see `OpenClipEncoder.load` for its preprocessing).

    Raises:
        InputError: nothing is there, it cannot be read safely, its library is not installed, or it is a model
            of another library that does not embed images and texts in one space.
    """
    if name.startswith(PREFIX):
        return OpenClipEncoder.load(*architecture_and_path(name))
    if name.startswith(MOFI_RELEASE):
        return HuggingFaceEncoder.load_mofi(name.removeprefix(MOFI_RELEASE))
    path = Path(name)
    if not path.exists() and not is_hub_id(name):
        raise InputError(f"no model at {name}; give {FORMS}")
    if path.exists() and (checkpoint.is_model(path) or not (path / "config.json").is_file()):
        return load(path)
    return HuggingFaceEncoder.load(name)


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME, and so may be a repository of the Hugging Face hub."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def architecture_and_path(name: str) -> tuple[str, Path]:
    """The two parts of `open_clip:ARCHITECTURE=PATH`.

    Raises:
        InputError: it is not of this form.
    """
    architecture, equals, path = name.removeprefix(PREFIX).partition("=")
    if not (architecture and equals and path):
        raise InputError(f"model {name!r} is not of the form {PREFIX}ARCHITECTURE=PATH")
    return architecture, Path(path)
