"""The library `efficientnet_lite`."""

from __future__ import annotations

from typing import Any

import timm

from mofi_efficientnet_lite.weights import imagenet_weights
from mofi_lightning.encoders.base import BackboneLibrary
from mofi_lightning.encoders.image import TimmEncoder
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import InputError

# as the weights were trained: (x - 127) / 128 on 0..255, bicubic, central 224 of 256
_PREPROCESS = Preprocess(
    size=224, crop=0.875, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


class EfficientNetLiteLibrary(BackboneLibrary):
    """`efficientnet_lite/lite0`: EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; 3.4 M parameters).

    Squeeze-and-excitation is left out and ReLU6 takes the place of swish. Features are 1280 wide; the tokens
    are the positions of the last feature map, 7 x 7 for 224 pixels. Its norms look across the batch: on
    several processes it is meant as a frozen tower.
    """

    prefix = "efficientnet_lite"

    def names(self) -> list[str]:
        """The one size whose weights can be installed."""
        return ["lite0"]

    def build(self, name: str, pretrained: bool = True) -> TimmEncoder:  # type: ignore[override]
        """Build the encoder `name`.

        Args:
            name: 'lite0'.
            pretrained: ImageNet weights (75.1 % top-1, as their authors report); false gives fresh ones.

        Raises:
            InputError: unknown name, or the package with the weights is not installed.
        """
        if name not in self.names():
            raise InputError(f"efficientnet_lite has no model {name!r}; there is lite0")
        model: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        if pretrained:
            weights = imagenet_weights()
            model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("classifier.")})
        # a saved model brings its weights along: it is rebuilt without the package that held them
        return TimmEncoder(model, _PREPROCESS, rebuild_options={"pretrained": False})
