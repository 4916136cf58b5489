"""An objective for mofi_lightning: alignment and uniformity of images and texts."""

from mofi_template.objective import Template

__all__ = ["Template"]
