"""Mentions by a Hugging Face token classifier."""

from mofi_token_mentions.detector import TokenClassifierDetector

__all__ = ["TokenClassifierDetector"]
