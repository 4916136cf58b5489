"""Embeddings of one model, computed once: kept in memory, and on disk by the content they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.images import (
    BATCH_SIZE,
    EmbeddedImages,
    EmbeddingModel,
    embed_batches,
    embed_images,
    embed_texts,
    nothing_embedded,
)
from mofi_lightning.evaluation.embedding.progress import progress
from mofi_lightning.evaluation.embedding.store import EmbeddingStore, content_hashes
from mofi_lightning.evaluation.versions import EMBEDDING, installed
from mofi_lightning.types import InputError

# of data sets whose embeddings are on disk: one, and the one it learns from
_SETS_IN_MEMORY = 2


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


@dataclass(frozen=True)
class Deferred:
    """A model that is loaded when something is not embedded yet, and never if all is.

    Attributes:
        load: gives the model.
    """

    load: Callable[[], EmbeddingModel]


class Embedder:
    """A model whose embeddings are computed once.

    Images and texts are embedded in batches of those that differ, in the order in which they come, whatever
    is known already; so a run that was interrupted gives, when it goes on, the numbers it would have given.

    Args:
        model: what embeds.
        cache: folder for the embeddings, which outlive the process; None keeps them in memory only.
        model_hash: of what the model is (`NamedModel.content_hash`); with the versions of the libraries, it
            names the cache's files. Needed with `cache`.
        workers: threads that decode.
        description: title of the progress bars, the model's name; None shows none.
    """

    def __init__(
        self,
        model: EmbeddingModel | Deferred,
        cache: Path | None = None,
        model_hash: str = "",
        workers: int = 2,
        description: str | None = None,
    ) -> None:
        self._model = model
        self.cache = cache
        self.model_hash = model_hash
        self.workers = workers
        self.description = description
        self._known: dict[str, EmbeddedImages] = {}
        self._texts: dict[str, Tensor] = {}

    @cached_property
    def model(self) -> EmbeddingModel:
        """What embeds, loaded."""
        return self._model.load() if isinstance(self._model, Deferred) else self._model

    @property
    def has_text(self) -> bool:
        """Whether the model can embed texts."""
        return getattr(self.model, "text", None) is not None

    def images(self, data: EvaluationSet) -> EmbeddedImages:
        """Embeddings of the images of `data`."""
        if data.fingerprint not in self._known:
            store = self._image_store
            embedded = self.embed_images(data.images) if store is None else self._stored_images(data, store)
            self._known[data.fingerprint] = embedded
            if store is not None and len(self._known) > _SETS_IN_MEMORY:
                del self._known[next(iter(self._known))]
        return self._known[data.fingerprint]

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
            InputError: there are no texts, the model has no text tower, or an embedding is not finite.
        """
        if not texts:
            raise InputError("there are no texts to embed")
        vectors = self._stored_texts(texts) if self.cache is not None else self._known_texts(texts)
        wrong = (~vectors.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            raise InputError(
                f"{len(wrong)} of {len(texts)} text embeddings of {self.description or 'the model'} are not "
                f"finite, the first of {texts[wrong[0]]!r}; the model is broken"
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
            shown = ", ".join(str(data.keys[row]) for row in broken[:3])
            shown += ", ..." if len(broken) > 3 else ""
            raise InputError(
                f"{len(broken)} of {len(rows)} embeddings of {self.description or 'the model'} are not "
                f"finite ({shown}); the model is broken, or these images break it"
            )
        same = embedded.features is embedded.embeddings
        features = vectors if same else embedded.features[rows]
        return LabelledImages(vectors, features, labels[rows], rows, len(data.keys))

    def _known_texts(self, texts: Sequence[str]) -> Tensor:
        key = hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=16).hexdigest()
        if key not in self._texts:
            self._texts[key] = self.embed_texts(texts)
        return self._texts[key]

    def _stored_texts(self, texts: Sequence[str]) -> Tensor:
        store = self._text_store
        contents = content_hashes(text.encode() for text in texts)
        for block in _blocks(contents):
            if not store.knows(contents[block]).all():
                store.append(contents[block], self.embed_texts([texts[row] for row in block]), None, {})
        return store.read(contents)[0]

    def _stored_images(self, data: EvaluationSet, store: EmbeddingStore) -> EmbeddedImages:
        images, contents = data.images, np.array(data.digests, dtype="S16")
        blocks = [block for block in _blocks(contents) if not store.knows(contents[block]).all()]
        if blocks:
            batches = ([images[row] for row in block] for block in blocks)
            with progress(self.description, sum(map(len, blocks))) as advance:
                embedded = embed_batches(
                    self.model, batches, self.workers, names=np.concatenate(blocks).tolist()
                )
                for block, batch in zip(blocks, embedded, strict=True):
                    failed = {contents[block[row]]: why for row, why in batch.failed.items()}
                    features = None if batch.features is batch.embeddings else batch.features
                    store.append(contents[block[batch.rows.numpy()]], batch.embeddings, features, failed)
                    advance(len(block))
        missing = (store.find(contents) < 0).nonzero()[0].tolist()
        failed_rows = {row: store.failure(contents[row]) for row in missing}
        if len(failed_rows) == len(contents):
            raise nothing_embedded(len(contents), failed_rows)
        return EmbeddedImages(*store.read(contents), failed_rows)

    @cached_property
    def _image_store(self) -> EmbeddingStore | None:
        return None if self.cache is None else EmbeddingStore(self._store_path(self.cache, "images"))

    @cached_property
    def _text_store(self) -> EmbeddingStore:
        assert self.cache is not None
        return EmbeddingStore(self._store_path(self.cache, "texts"))

    def _store_path(self, cache: Path, kind: str) -> Path:
        made_by = f"{self.model_hash} {installed(EMBEDDING)}"
        return cache / f"{hashlib.blake2b(made_by.encode(), digest_size=16).hexdigest()}.{kind}"


def _blocks(contents: np.ndarray) -> list[np.ndarray]:
    """Rows of the contents that differ, in the order in which they first come, in batches."""
    first = np.sort(np.unique(contents, return_index=True)[1])
    return [first[start : start + BATCH_SIZE] for start in range(0, len(first), BATCH_SIZE)]
