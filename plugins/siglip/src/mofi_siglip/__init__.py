"""Contrastive learning with a sigmoid a pair instead of a softmax a row."""

from mofi_siglip.objective import SigLIP

__all__ = ["SigLIP"]
