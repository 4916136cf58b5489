"""Thumbnails of a page: each is in it once, however often it is shown."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet

SIZE, _QUALITY = 64, 75
_SQUARE = Preprocess(size=SIZE, resize="shortest")


class Thumbnails:
    """Thumbnails of the images of one set.

    Args:
        data: the set.
        prefix: of the ids in the page; each set has its own.
    """

    def __init__(self, data: EvaluationSet, prefix: str) -> None:
        self.data = data
        self.prefix = prefix
        self._shown: set[int] = set()

    def use(self, row: int) -> str:
        """An `<svg>` that shows the image of a row, without a name."""
        self._shown.add(row)
        return f'<svg viewBox="0 0 {SIZE} {SIZE}"><use href="#{self.prefix}{row}"/></svg>'

    def named(self, row: int, name: str) -> str:
        """An `<svg>` that shows the image of a row; `name` is escaped HTML."""
        return self.use(row).replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)

    def sheet(self) -> str:
        """The images that are shown anywhere, as definitions; the page needs them once."""
        images = "".join(
            f'<image id="{self.prefix}{row}" width="{SIZE}" height="{SIZE}" href="{self._encoded(row)}"/>'
            for row in sorted(self._shown)
        )
        return f'<svg class="sheet" aria-hidden="true"><defs>{images}</defs></svg>'

    def _encoded(self, row: int) -> str:
        pixels = _SQUARE(decode(self.data.images[row])).permute(1, 2, 0).contiguous().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", quality=_QUALITY, method=4)
        return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
