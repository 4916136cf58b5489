"""Sentence vectors: how near a text is to what the knowledge base says of an entity."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mofi_lightning.encoders.label_encoders import Vectors, open_label_encoder

# vectors a process keeps: texts repeat, and so do the entities of ambiguous names
_KEPT = 32_768


class SentenceVectors:
    """Unit vectors of texts, kept for the texts met last.

    Every text is embedded by itself, which takes twice the time of a batch: so its vector is the same to the
    last bit whatever stands beside it, and a pipeline that was cut off repeats what it had found.

    Args:
        model: what makes the vectors (see `encoders.label_encoders.open_label_encoder`).

    Raises:
        InputError: `model` is no text model.
    """

    def __init__(self, model: str) -> None:
        self._encode = open_label_encoder(model)
        self.vector = lru_cache(maxsize=_KEPT)(self._embed)

    def cosines(self, text: str, others: list[str]) -> list[float]:
        """The cosine of `text` with each of `others`; 0 where the model knows no word."""
        vector = self.vector(text)
        return [float(vector @ self.vector(other)) for other in others]

    def _embed(self, text: str) -> Vectors:
        (vector,) = self._encode([text])
        length = float(np.linalg.norm(vector))
        return (vector / length if length else vector).astype(np.float32)
