"""The image check: how well images show what their texts name, in the eyes of an image-text model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.images.similarity import Floats, Ints, Moments, one_thread

if TYPE_CHECKING:
    from torch import Tensor

    from mofi_lightning.evaluation.embedding.images import EmbeddingModel

# images a forward pass, and candidates whose vectors are copied at a time
_BATCH = 256
_BLOCK = 16_384


class Scored(NamedTuple):
    """What the image check finds about the n images of a part.

    Attributes:
        cosines: of each image with its candidates; None without a model, and for an image that a filter
            removed or that cannot be decoded.
        decoys: of the image's partner (`partners`) with the same candidates: what wrong images score. NaN
            without a partner, and for a candidate that the partner's text names too.
        errors: row -> why it cannot be decoded.
        hashes: of what the images look like, or of their files, uint64 `[n]`; 0 if not decoded.
        embeddings: float16 `[n, D]`, rows of NaN for images that were not embedded; None without a model.
        moments: of the embeddings, before they were rounded; None without a model.
    """

    cosines: list[list[float] | None]
    decoys: list[list[float] | None]
    errors: dict[int, str]
    hashes: NDArray[np.uint64]
    embeddings: NDArray[np.float16] | None
    moments: Moments | None


class ImageScorer:
    """Scores the parts of a corpus, one after the other.

    Args:
        model: an image-text model (`encoders.peers.load_encoder`), on whatever device; None only decodes.
        rows: of the knowledge base: the U entities that are candidates anywhere, ascending.
        vectors: theirs (`entity_vectors`), float32 `[U, D]`, possibly memory-mapped.
        perceptual: whether images are told apart by what they look like (`perceptual_hash`), which takes a
            tenth of a millisecond and finds near-duplicates; otherwise by their files.
        threads: that decode images while the model, on another device, embeds others; 0 takes turns.
    """

    def __init__(
        self,
        model: EmbeddingModel | None,
        rows: Ints,
        vectors: Floats,
        perceptual: bool = True,
        threads: int = 0,
    ) -> None:
        self._model = model
        self._rows = rows
        self._vectors = vectors
        self._perceptual = perceptual
        self._threads = threads

    def score(self, images: Iterable[bytes | None], candidates: Sequence[Sequence[int]]) -> Scored:
        """Decode, hash and embed every image once, and compare it with its candidates.

        The result depends on the arguments alone, not on how many threads and processes there are.

        Args:
            images: n encoded files, read once, in order; None for an image that a filter removed.
            candidates: of each image, rows of the knowledge base.
        """
        hashes = np.zeros(len(candidates), dtype=np.uint64)
        errors: dict[int, str] = {}
        used: list[int] = []
        embedded: list[NDArray[np.float32]] = []
        for batch in self._prepared(images):
            pixels = []
            for row, prepared in batch:
                if isinstance(prepared, str):
                    errors[row] = prepared
                    continue
                hashes[row], pixel = prepared
                used.append(row)
                pixels.append(pixel)
            if pixels and self._model is not None:
                embedded.append(_embed(self._model, cast("list[Tensor]", pixels)))
        if self._model is None:
            nothing: list[list[float] | None] = [None] * len(candidates)
            return Scored(nothing, nothing, errors, hashes, None, None)
        embeddings = np.full((len(candidates), self._vectors.shape[1]), np.nan, dtype=np.float32)
        if used:
            embeddings[used] = np.concatenate(embedded)
        usable = np.isin(np.arange(len(candidates)), used)
        cosines, decoys = self._compare(embeddings, candidates, usable, partners(hashes, usable))
        moments = Moments.of(embeddings[usable])
        return Scored(cosines, decoys, errors, hashes, embeddings.astype(np.float16), moments)

    def _prepared(
        self, images: Iterable[bytes | None]
    ) -> Iterator[list[tuple[int, str | tuple[int, Tensor | None]]]]:
        """Batches of (row, what is wrong or else hash and pixels) of the images that are not None."""
        import torch

        from mofi_lightning.curation.images.perceptual_hash import perceptual_hash
        from mofi_lightning.encoders.decoding import UndecodableImage, decode

        def prepare(numbered: tuple[int, bytes]) -> tuple[int, str | tuple[int, Tensor | None]]:
            row, data = numbered
            try:
                pixels = decode(data)
            except UndecodableImage as error:
                return row, str(error)
            preprocessed = None if self._model is None else self._model.preprocess(pixels)
            hashed = perceptual_hash(pixels) if self._perceptual else _hash_of_file(data)
            return row, (hashed, preprocessed)

        stream = ((row, data) for row, data in enumerate(images) if data is not None)
        if not self._threads:
            while batch := [prepare(numbered) for numbered in islice(stream, _BATCH)]:
                yield batch
            return
        # a thread has its own number of OpenMP threads, whatever the process was told
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending = pool.map(prepare, islice(stream, _BATCH))
            while batch := list(pending):
                pending = pool.map(prepare, islice(stream, _BATCH))  # decoded while this batch is embedded
                yield batch

    def _compare(
        self,
        embeddings: Floats,
        candidates: Sequence[Sequence[int]],
        usable: NDArray[np.bool_],
        pairing: Ints,
    ) -> tuple[list[list[float] | None], list[list[float] | None]]:
        sizes = [len(found) if usable[row] else 0 for row, found in enumerate(candidates)]
        images = np.repeat(np.arange(len(sizes)), sizes)
        entities = np.array(
            [entity for row, found in enumerate(candidates) if usable[row] for entity in found],
            dtype=np.int64,
        )
        columns = np.searchsorted(self._rows, entities)
        others = pairing[images]
        # an image whose text names the entity too may well show it: no example of a wrong one
        shared = np.isin((others << 32) | entities, (images << 32) | entities)
        cosines, decoys = np.full((2, len(images)), np.nan, dtype=np.float32)
        for start in range(0, len(images), _BLOCK):
            block = slice(start, start + _BLOCK)
            vectors = self._vectors[columns[block]]
            cosines[block] = np.einsum("nd,nd->n", embeddings[images[block]], vectors)
            decoys[block] = np.einsum("nd,nd->n", embeddings[others[block]], vectors)
        decoys[shared | (others < 0)] = np.nan
        return _split(cosines, sizes, usable), _split(decoys, sizes, usable)


def partners(hashes: NDArray[np.uint64], usable: NDArray[np.bool_]) -> Ints:
    """Pair each usable image of a part with one of another hash: at random, but always alike.

    In a random order in which equal hashes stand together, every image is paired with the one that stands as
    far behind it as the largest such group is long; so every image is the partner of one other.

    Args:
        hashes: `[n]`.
        usable: images that can be paired, `[n]`.

    Returns:
        int64 `[n]`, -1 where not usable, and where more than half of the images have the same hash.
    """
    pairing = np.full(len(hashes), -1, dtype=np.int64)
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(usable))
    if not len(shuffled):
        return pairing
    _, first, group, sizes = np.unique(
        hashes[shuffled], return_index=True, return_inverse=True, return_counts=True
    )
    grouped = shuffled[np.argsort(first[group], kind="stable")]
    partner = np.roll(grouped, -sizes.max())
    pairing[grouped] = np.where(hashes[grouped] == hashes[partner], -1, partner)
    return pairing


def _hash_of_file(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _embed(model: EmbeddingModel, pixels: Sequence[Tensor]) -> NDArray[np.float32]:
    import torch

    from mofi_lightning.evaluation.embedding.images import device_of

    with torch.inference_mode(), one_thread():
        embeddings: NDArray[np.float32] = (
            model.encode_image(torch.stack(list(pixels)).to(device_of(model))).float().cpu().numpy()
        )
    return embeddings


def _split(values: Floats, sizes: Sequence[int], usable: NDArray[np.bool_]) -> list[list[float] | None]:
    parts = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
    return [part.tolist() if use else None for part, use in zip(parts, usable, strict=True)]
