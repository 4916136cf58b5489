"""EfficientNet-Lite0 with its ImageNet weights as a library of image encoders."""

from mofi_efficientnet_lite.library import EfficientNetLiteLibrary

__all__ = ["EfficientNetLiteLibrary"]
