"""A frozen image encoder beside the one that is trained, for objectives that learn from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mofi_lightning import entry_points
from mofi_lightning.encoders.checkpoint import model_path
from mofi_lightning.encoders.dual_encoder import load
from mofi_lightning.encoders.registry import build_image_encoder
from mofi_lightning.encoders.towers import ImageTower
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class TeacherConfig:
    """What a `Teacher` is built from.

    Attributes:
        image: a backbone, `PREFIX/NAME` (its pooled features are the output), or the folder or checkpoint of
            a trained model (its image embeddings are).
        image_options: what the backbone's library takes besides the name, such as `pretrained: true`.
    """

    image: str
    image_options: dict[str, Any] = field(default_factory=dict)


class Teacher(nn.Module):
    """Images to the unit vectors of a frozen encoder; it gets no gradient and never trains.

    Args:
        config: what to build.

    Attributes:
        dim: E, width of the output.

    Raises:
        InputError: the encoder cannot be built.
    """

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        path = model_path(Path(config.image))
        self.projected = path.exists()
        if self.projected and config.image_options:
            raise InputError(
                f"teacher {config.image} is a trained model, which takes no image_options; leave them out"
            )
        if not self.projected and config.image.split("/")[0] not in entry_points.names():
            raise InputError(
                f"teacher {config.image!r} is neither a backbone (see `mofi backbones`) nor the folder "
                "or checkpoint of a trained model"
            )
        if self.projected:
            model = load(path)
            self.tower, self.size, self.dim = model.image, model.preprocess.size, model.embed_dim
        else:
            encoder = build_image_encoder(config.image, **config.image_options)
            self.tower = ImageTower(encoder, None, encoder.preprocess)
            self.size, self.dim = encoder.preprocess.size, encoder.feature_dim
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` `[B, 3, H, W]`, uint8 in 0..255 or floating point in 0..1, as `[B, E]`, unit norm.

        Images of another size than the teacher's are resized, so that it sees the same crop.
        """
        if image.shape[-1] != self.size:
            pixels = image if image.is_floating_point() else image.to(self.tower.mean.dtype) / 255
            size = (self.size, self.size)
            image = F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(0, 1)
        output = self.tower(image)
        vectors = output.embedding if self.projected else output.features
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)
