"""Contrastive learning by late interaction of image and text tokens."""

from mofi_filip.objective import FILIP

__all__ = ["FILIP"]
