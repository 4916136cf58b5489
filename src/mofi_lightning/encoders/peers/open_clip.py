"""Models of open_clip."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from mofi_lightning.complaints import near
from mofi_lightning.encoders.peers.base import PeerEncoder, normalised, one_line, without_ends
from mofi_lightning.types import InputError

PREFIX = "open_clip:"

_log = logging.getLogger(__name__)


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
        check_architecture(architecture)
        import open_clip

        if not path.is_file():
            raise InputError(f"no open_clip checkpoint at {path}; give {PREFIX}ARCHITECTURE=PATH")
        try:
            model, transform = open_clip.create_model_from_pretrained(
                architecture, pretrained=str(path), weights_only=True, **_listed_settings(architecture)
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except Exception as error:  # open_clip, torch and safetensors each raise kinds of their own
            raise InputError(
                f"open_clip cannot load {path} as {architecture}: {_reason(error, architecture)}; give the "
                "weights of this architecture, as safetensors or as a state dict that torch loads with "
                "weights_only"
            ) from error
        return cls(model, transform, tokenizer).eval()

    def preprocess(self, image: Tensor) -> Tensor:
        """See `PeerEncoder`; by the model's transform, which takes images of PIL."""
        from torchvision.transforms.v2.functional import to_pil_image

        settings = getattr(cast(Any, self.model).visual, "preprocess_cfg", {})
        if settings.get("resize_mode", "shortest") == "shortest":
            image = without_ends(image)
        pixels: Tensor = self._transform(to_pil_image(image))
        return pixels

    def encode_image_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `PeerEncoder`; a ViT's features are what its matrix `proj` projects."""
        model = cast(Any, self.model)
        visual = model.visual
        projection = getattr(visual, "proj", None)
        if not isinstance(projection, nn.Parameter) or getattr(visual, "output_tokens", False):
            embedding = normalised(model.encode_image(image))
            return embedding, embedding
        visual.proj = None
        try:
            features = visual(image)
        finally:
            visual.proj = projection
        return normalised(features @ projection), features.float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `PeerEncoder`."""
        return normalised(cast(Any, self.model).encode_text(self._tokenizer(list(texts)).to(self.device)))


def check_architecture(architecture: str) -> None:
    """Refuse what open_clip cannot build.

    Raises:
        InputError: open_clip is not installed, or does not know the architecture.
    """
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            f"{PREFIX}{architecture} needs open_clip; pip install open-clip-torch brings it"
        ) from error
    known = open_clip.list_models()
    if architecture not in known:
        raise InputError(
            f"open_clip has no architecture {architecture!r}{near(architecture, known)}; "
            "`open_clip.list_models()` lists them"
        )


def _reason(error: Exception, architecture: str) -> str:
    """What is wrong with a file of weights; of long lists of keys how many, and the first one."""
    message = str(error)
    found = []
    for word in ("Missing", "Unexpected"):
        listing = re.search(rf"{word} key\(s\) in state_dict: (.*)", message)
        keys = re.findall(r'"([^"]+)"', listing[1]) if listing else []
        if keys:
            be = "are missing" if word == "Missing" else f"are none of {architecture}'s"
            found.append(f"{len(keys):,} keys {be}, such as {keys[0]!r}")
    shapes = re.findall(r"size mismatch for ([^:]+):", message)
    if shapes:
        found.append(f"{len(shapes):,} have another shape than {architecture}'s, such as {shapes[0]!r}")
    return ", ".join(found) or one_line(error)


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
