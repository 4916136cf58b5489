"""Emoji in six drawing styles as a source of noisy image + alt-text pairs."""

from mofi_emoji.source import EmojiSource

__all__ = ["EmojiSource"]
