"""Image encoders of our own: MOFI's three sizes, and a tiny one that trains on a CPU."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from timm.models.convnext import ConvNeXt

from mofi_lightning.encoders.base import BackboneLibrary, ImageEncoder
from mofi_lightning.encoders.image import TimmEncoder, TimmLibrary
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.types import InputError

# MOFI's image towers are CLIP ViTs: a norm before the blocks, no bias in the patch embedding
_VIT = {
    "b16": "vit_base_patch16_clip_224",
    "l14": "vit_large_patch14_clip_224",
    "h14": "vit_huge_patch14_clip_224",
}
_MOFI_PREPROCESS = Preprocess(interpolation="bilinear", antialias=False, resize_on="float")

#: The text encoders that go with MOFI's image encoders, with OPT's vocabulary 64, 124 and 354 M parameters.
TEXT_CONFIGS = {
    "b16": TextConfig(width=512, layers=12, heads=8, context_length=76),
    "l14": TextConfig(width=768, layers=12, heads=12, context_length=76),
    "h14": TextConfig(width=1024, layers=24, heads=16, context_length=76),
}


class MofiLibrary(BackboneLibrary):
    """`mofi/b16`, `mofi/l14`, `mofi/h14`: MOFI's ViTs (86, 303, 631 M parameters) and preprocessing.

    `mofi/tiny` is a four-stage ConvNeXt for 32 x 32 pixels (0.5 M), whose norms do not look across the batch.
    """

    prefix = "mofi"

    def names(self) -> list[str]:
        """The presets."""
        return ["tiny", *_VIT]

    def build(self, name: str, **options: Any) -> ImageEncoder:
        """Build the preset `name`; options are those of timm's model, such as `drop_path_rate`.

        Raises:
            InputError: unknown name or option.
        """
        if name == "tiny":
            return _tiny(options)
        if name not in _VIT:
            near = difflib.get_close_matches(name, self.names(), 1)
            hint = f"did you mean mofi/{near[0]}?" if near else f"there are {', '.join(self.names())}"
            raise InputError(f"mofi has no preset {name!r}; {hint}")
        encoder = TimmLibrary().build(_VIT[name], **options)
        encoder.preprocess = dataclasses.replace(_MOFI_PREPROCESS, size=encoder.preprocess.size)
        return encoder


def _tiny(options: dict[str, Any]) -> TimmEncoder:
    try:
        model = ConvNeXt(
            depths=(1, 1, 1, 1),
            dims=(24, 48, 96, 192),
            kernel_sizes=3,
            patch_size=2,
            ls_init_value=None,
            num_classes=0,
            **options,
        )
    except TypeError as error:
        raise InputError(f"mofi/tiny cannot be built: {error}") from error
    return TimmEncoder(model, Preprocess(size=32, interpolation="bilinear"), rebuild_options=options)
