"""The space of label vectors into which an objective such as DeViSE maps images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mofi_lightning.encoders.label_encoders import LabelEncoder, embed_labels, open_label_encoder
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class LabelSpaceConfig:
    """How texts become label vectors; plain values, saved with a model.

    Attributes:
        dim: V, width of the vectors.
        model: what made them: the absolute path of a text model, or the package that holds one; None where
            that is not known.
        descriptions: of name and description instead of the name alone.
    """

    dim: int
    model: str | None = None
    descriptions: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelSpaceConfig:
        """Build from plain values, as in a config.json, checked.

        Raises:
            InputError: a key is missing or unknown, or a value is of another type.
        """
        kinds = {"dim": int, "model": str | None, "descriptions": bool}
        if values.keys() != kinds.keys() or not all(isinstance(values[k], t) for k, t in kinds.items()):
            raise InputError(f"label_space {dict(values)} does not give dim, model and descriptions")
        return cls(**values)


class LabelSpace(nn.Module):
    """Images and texts to one space of label vectors: images by a linear map, texts by a fixed text model.

    Args:
        embed_dim: D, width of the image embeddings.
        config: how texts become vectors.

    Attributes:
        map: bias-free linear map from `[B, D]` to `[B, V]`.
    """

    def __init__(self, embed_dim: int, config: LabelSpaceConfig) -> None:
        super().__init__()
        self.config = config
        self.map = nn.Linear(embed_dim, config.dim, bias=False)
        self._encoder: LabelEncoder | None = None

    def map_image(self, embedding: Tensor) -> Tensor:
        """Map image embeddings `[B, D]`, as `DualEncoder.encode_image` makes them, to `[B, V]`, unit norm."""
        return F.normalize(self.map(embedding.to(self.map.weight.dtype)), dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Vectors of label texts: fp32 `[N, V]`, unit norm; zeros for a text without a word the model knows.

        The text model is loaded on the first call and kept.

        Raises:
            InputError: the text model is not known, not there, or not the one that made the label vectors.
        """
        if self.config.model is None:
            raise InputError(
                "the label vectors do not say which text model made them; make them with `mofi vectors`"
            )
        if self._encoder is None:
            self._encoder = open_label_encoder(self.config.model)
        vectors = torch.from_numpy(embed_labels(self._encoder, texts))
        if vectors.shape[1] != self.config.dim:
            raise InputError(
                f"text model {self.config.model!r} makes vectors of {vectors.shape[1]} dimensions and the "
                f"label vectors have {self.config.dim}; it is not the one that made them"
            )
        return F.normalize(vectors, dim=1).to(self.map.weight.device)
