"""Supervised contrastive learning of images with entity labels, without texts."""

from mofi_supcon.objective import SupCon

__all__ = ["SupCon"]
