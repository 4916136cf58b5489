"""Base classes of encoders and of the libraries that build them."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from mofi_lightning.encoders.preprocess import Preprocess


class EncoderOutput(NamedTuple):
    """Pooled features `[B, F]` and, when asked for, tokens `[B, T, F]` with their mask `[B, T]`."""

    features: Tensor
    tokens: Tensor | None = None
    tokens_mask: Tensor | None = None


class ImageEncoder(nn.Module, ABC):
    """Images to features.

    Attributes:
        feature_dim: F, width of the pooled features.
        preprocess: the geometry and the mean and standard deviation the weights expect.
        rebuild_options: the options with which the library builds the same architecture again without the
            files its weights came from; a saved model keeps these. None: those it was built with.
    """

    feature_dim: int
    preprocess: Preprocess
    rebuild_options: dict[str, Any] | None = None

    @abstractmethod
    def forward(self, pixels: Tensor, tokens: bool = False) -> EncoderOutput:
        """Encode normalised `pixels` `[B, 3, H, W]`; with `tokens`, keep the spatial tokens too."""


class TextEncoder(nn.Module, ABC):
    """Token ids to features.

    Attributes:
        feature_dim: F', width of the pooled features.
        context_length: the most tokens a text may have.
    """

    feature_dim: int
    context_length: int

    @abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: bool = False) -> EncoderOutput:
        """Encode `input_ids`, `attention_mask` `[B, L]`; with `tokens`, keep the token features too."""


class BackboneLibrary(ABC):
    """A family of image encoders behind a prefix: `timm/resnet50` is the library `timm`'s `resnet50`.

    Attributes:
        prefix: what stands before the slash.
    """

    prefix: ClassVar[str]

    @abstractmethod
    def names(self) -> list[str]:
        """All names the library can build, without the prefix."""

    def match(self, pattern: str) -> list[str]:
        """Names, with the prefix, that match the shell `pattern` with or without it."""
        full = {name: f"{self.prefix}/{name}" for name in self.names()}
        return [f for n, f in full.items() if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(f, pattern)]

    @abstractmethod
    def build(self, name: str, **options: Any) -> ImageEncoder:
        """Build the encoder `name` (without the prefix).

        Raises:
            InputError: no such name, or options it does not take.
        """
