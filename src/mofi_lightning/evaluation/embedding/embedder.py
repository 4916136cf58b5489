"""Embeddings of one model, computed once: kept in memory, and on disk by the content they come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.images import (
    EmbeddedImages,
    EmbeddingModel,
    embed_images,
    embed_texts,
)
from mofi_lightning.types import InputError


class LabelledImages(NamedTuple):
    """The M images of a set of N that have an embedding.

    Attributes:
        embeddings: float32 `[M, D]`, L2-normalised.
        features: float32 `[M, F]`, before the projection.
        labels: int64 `[M]`, rows of the set's `classes`.
        rows: int64 `[M]`, their rows in the set, ascending.
        size: N.
    """

    embeddings: Tensor
    features: Tensor
    labels: Tensor
    rows: Tensor
    size: int

    def scores(self, values: Tensor) -> Scores:
        """Values `[M]` of these images as scores of all images of the set, clustered by class."""
        spread = torch.full((self.size,), torch.nan, dtype=torch.float64)
        spread[self.rows] = values.double().cpu()
        clusters = torch.zeros(self.size, dtype=torch.long)
        clusters[self.rows] = self.labels
        return Scores(spread, clusters)


class Embedder:
    """A model whose embeddings are computed once.

    Args:
        model: what embeds.
        cache: folder for the embeddings; None keeps them in memory only.
        model_hash: of the model's files (`hash_files`); names the cache's files. Needed with `cache`.
        workers: threads that decode.
        description: title of the progress bars, the model's name; None shows none.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        cache: Path | None = None,
        model_hash: str = "",
        workers: int = 2,
        description: str | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.model_hash = model_hash
        self.workers = workers
        self.description = description
        self._known: dict[str, EmbeddedImages] = {}

    @property
    def has_text(self) -> bool:
        """Whether the model can embed texts."""
        return getattr(self.model, "text", None) is not None

    def images(self, data: EvaluationSet) -> EmbeddedImages:
        """Embeddings of the images of `data`."""
        return self._once(data.fingerprint, lambda: self.embed_images(data.images))

    def labelled(self, data: EvaluationSet) -> LabelledImages:
        """The images of `data` that can be decoded.

        Raises:
            InputError: an embedding is not finite.
        """
        return self._labelled(data, data.labels())

    def fit(self, data: EvaluationSet) -> LabelledImages | None:
        """The images of `data.fit` that can be decoded, with labels of `data.classes`; None without `fit`.

        Raises:
            InputError: an embedding is not finite.
        """
        return None if data.fit is None else self._labelled(data.fit, data.labels(data.fit.entities))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings float32 `[N, D]` of `texts`.

        Raises:
            InputError: the model has no text tower, or an embedding is not finite.
        """
        key = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()

        def embed() -> EmbeddedImages:
            vectors = self.embed_texts(texts)
            return EmbeddedImages(vectors, vectors)

        vectors = self._once(key, embed).embeddings
        wrong = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            raise InputError(
                f"{len(wrong)} of {len(texts)} text embeddings of {self.description or 'the model'} are not finite, "
                f"the first of {texts[wrong[0]]!r}; the model is broken"
            )
        return vectors

    def embed_images(self, images: Sequence[bytes]) -> EmbeddedImages:
        """Embed images that are not known yet."""
        return embed_images(self.model, images, workers=self.workers, description=self.description)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts that are not known yet."""
        return embed_texts(self.model, texts)

    def _labelled(self, data: EvaluationSet, labels: Tensor) -> LabelledImages:
        embedded = self.images(data)
        rows = embedded.usable
        vectors = embedded.embeddings[rows]
        broken = rows[~vectors.isfinite().all(dim=1)].tolist()
        if broken:
            shown = ", ".join(str(data.keys[row]) for row in broken[:3]) + (
                ", ..." if len(broken) > 3 else ""
            )
            raise InputError(
                f"{len(broken)} of {len(rows)} embeddings of {self.description or 'the model'} are not finite "
                f"({shown}); the model is broken, or these images break it"
            )
        return LabelledImages(vectors, embedded.features[rows], labels[rows], rows, len(data.keys))

    def _once(self, content: str, embed: Callable[[], EmbeddedImages]) -> EmbeddedImages:
        if content not in self._known:
            self._known[content] = (
                embed() if self.cache is None else self._load_or(content, embed, self.cache)
            )
        return self._known[content]

    def _load_or(self, content: str, embed: Callable[[], EmbeddedImages], cache: Path) -> EmbeddedImages:
        file = cache / f"{self.model_hash}-{content}.safetensors"
        if file.is_file():
            with safe_open(file, "pt") as stored:
                failed = {int(row): reason for row, reason in (stored.metadata() or {}).items()}
                return EmbeddedImages(stored.get_tensor("embeddings"), stored.get_tensor("features"), failed)
        embedded = embed()
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        reasons = {str(row): reason for row, reason in embedded.failed.items()}
        tensors = {"embeddings": embedded.embeddings.contiguous(), "features": embedded.features.clone()}
        save_file(tensors, partial, metadata=reasons or None)
        os.replace(partial, file)
        return embedded
