"""Embeddings of one model, computed once: kept in memory, and on disk by the content they come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mofi_lightning.evaluation.datasets import EvaluationSet
from mofi_lightning.evaluation.embedding import EmbeddedImages, EmbeddingModel, embed_images, embed_texts


class Embedder:
    """A model whose embeddings are computed once.

    Args:
        model: what embeds.
        cache: folder for the embeddings; None keeps them in memory only.
        model_hash: of the model's files (`hash_files`); names the cache's files. Needed with `cache`.
        workers: threads that decode.
        description: title of the progress bars; None shows none.
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
        return self.model.text is not None

    def images(self, data: EvaluationSet) -> EmbeddedImages:
        """Embeddings of the images of `data`."""
        return self._once(
            data.fingerprint,
            lambda: embed_images(self.model, data.images, workers=self.workers, description=self.description),
        )

    def labelled(self, data: EvaluationSet) -> tuple[Tensor, Tensor]:
        """Embeddings `[M, D]` and class ids `[M]` of the images of `data` that can be decoded."""
        embedded = self.images(data)
        rows = embedded.usable
        return embedded.embeddings[rows], data.labels()[rows]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings `[N, D]` of `texts`."""
        key = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
        return self._once(key, lambda: EmbeddedImages(embed_texts(self.model, texts))).embeddings

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
                return EmbeddedImages(stored.get_tensor("embeddings"), failed)
        embedded = embed()
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        reasons = {str(row): reason for row, reason in embedded.failed.items()}
        save_file({"embeddings": embedded.embeddings.contiguous()}, partial, metadata=reasons or None)
        os.replace(partial, file)
        return embedded


def hash_files(path: Path) -> str:
    """Hash of the content of a file, or of the names and contents of all files below a folder."""
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
