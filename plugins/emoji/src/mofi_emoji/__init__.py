"""Emoji and flags in several drawing styles as sources of noisy image + alt-text pairs."""

from mofi_emoji.flags import FlagSource
from mofi_emoji.source import EmojiSource

__all__ = ["EmojiSource", "FlagSource"]
