"""Embeddings of the model in training: the work is split over the ranks, and every rank gets all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import all_reduce, rank, world_size
from mofi_lightning.encoders.decoding import UndecodableImage, decode, fault_kinds
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.evaluation.datasets import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.embedding.images import EmbeddedImages
from mofi_lightning.types import InputError


class TrainedModel:
    """A model in training as evaluators see it: in the run's precision, with the objective's label space.

    Args:
        model: its parameters may be sharded over the ranks.
        label_space: of the objective, likewise, or None. Copied whole by `refresh`, to the CPU.
        device: of the model.
        precision: makes the context of a forward pass.
    """

    def __init__(
        self,
        model: DualEncoder,
        label_space: LabelSpace | None,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.text = model.text
        self.preprocess = model.preprocess
        self.device = device
        self.label_space: LabelSpace | None = None
        self._model = model
        self._precision = precision
        self._trained_space = label_space
        if label_space is not None:
            self.label_space = LabelSpace(label_space.map.in_features, label_space.config)
            self.label_space.requires_grad_(False)

    def refresh(self) -> None:
        """Take over the label space as it has become; all ranks must call."""
        if self.label_space is not None and self._trained_space is not None:
            weight = self._trained_space.map.weight.detach()
            self.label_space.map.weight.copy_(weight.full_tensor() if isinstance(weight, DTensor) else weight)

    def encode_image(self, image: Tensor) -> Tensor:
        """See `DualEncoder`."""
        return self.encode_image_and_features(image)[0]

    def encode_image_and_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `DualEncoder`."""
        with self._precision():
            return self._model.encode_image_and_features(image)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `DualEncoder`."""
        with self._precision():
            return self._model.encode_text(texts)


class ShardedEmbedder(Embedder):
    """Embeds images and texts of one moment of training; all ranks must ask for the same.

    A rank's forward passes are as many and of the same shape as every other rank's, which FSDP needs: rows
    that are missing at the end, and images that cannot be decoded, are filled up with blank ones. Nothing
    outlives the embedder but what it returned.

    Args:
        model: the model.
        batch_size: rows a forward pass at most.
        workers: threads of each rank that decode.
    """

    def __init__(self, model: TrainedModel, batch_size: int = 256, workers: int = 2) -> None:
        super().__init__(model, workers=workers)
        self.batch_size = batch_size
        self._trained = model
        self._sets: dict[int, EmbeddedImages] = {}

    def images(self, data: EvaluationSet) -> EmbeddedImages:
        """Embeddings of the images of `data`, which are not read for a fingerprint first."""
        if id(data) not in self._sets:
            self._sets[id(data)] = self.embed_images(data.images)
        return self._sets[id(data)]

    @torch.no_grad()
    def embed_images(self, images: Sequence[bytes]) -> EmbeddedImages:
        """Embed `images`; equal on all ranks.

        A file that cannot be read counts as an image that cannot be decoded.

        Raises:
            InputError: none can be decoded, or the preprocessing fails; on all ranks alike, after the passes.
        """
        preprocess, count = self._trained.preprocess, len(images)
        blank = preprocess(torch.zeros(3, 8, 8, dtype=torch.uint8))
        faults: dict[int, str] = {}
        errors: dict[int, str] = {}

        def prepare(row: int) -> Tensor:
            # an error that one rank raised here would leave the others waiting in the forward pass
            try:
                data = images[row]
            except Exception as error:
                faults[row] = f"file that cannot be read: {error}"
                return blank
            try:
                image = preprocess(decode(data))
                if image.shape != blank.shape:
                    raise ValueError(f"it gave {[*image.shape]} for {[*blank.shape]}")
                return image
            except UndecodableImage as error:
                faults[row] = str(error)
            except Exception as error:
                errors[row] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return blank

        chunks = _chunks(count, self.batch_size)
        size = _chunk_size(count, self.batch_size)
        parts: list[tuple[Tensor, Tensor]] = []
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending = pool.map(prepare, chunks[0])
            for following in [*chunks[1:], range(0)]:
                prepared = list(pending)
                pending = pool.map(prepare, following)
                prepared += [blank] * (size - len(prepared))
                parts.append(
                    self._trained.encode_image_and_features(torch.stack(prepared).to(self._trained.device))
                )
        failed, broken = _merged(faults), _merged(errors)
        if broken:
            row, why = next(iter(broken.items()))
            raise InputError(f"preprocessing image {row} failed: {why}")
        if len(failed) == count:
            kinds = ", ".join(fault_kinds(failed.values()))
            raise InputError(f"none of {count} images could be embedded: {kinds}")
        embeddings, features = (_assembled(list(part), chunks, count) for part in zip(*parts, strict=True))
        for tensor in (embeddings, features):
            tensor[sorted(failed)] = torch.nan
        return EmbeddedImages(embeddings, features, failed)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed `texts`; equal on all ranks.

        Raises:
            InputError: the model has no text tower, or there are no texts.
        """
        if self._trained.text is None:
            raise InputError("the model has no text tower; it embeds images only")
        if not texts:
            raise InputError("there are no texts to embed")
        chunks = _chunks(len(texts), self.batch_size)
        size = _chunk_size(len(texts), self.batch_size)
        parts = []
        for rows in chunks:
            own = [texts[row] for row in rows]
            parts.append(self._trained.encode_text(own + [""] * (size - len(own))))
        return _assembled(parts, chunks, len(texts))


def _chunk_size(count: int, batch_size: int) -> int:
    return min(batch_size, -(-count // world_size()))


def _chunks(count: int, batch_size: int) -> list[range]:
    """This rank's rows of each forward pass, as many passes on every rank; the last may be short or empty.

    Passes go round the ranks: where each rank has more than one, every pass has the rows of a pass of a
    single rank.
    """
    size = _chunk_size(count, batch_size)
    stride = size * world_size()
    firsts = range(rank() * size, -(-count // stride) * stride, stride)
    return [range(min(first, count), min(first + size, count)) for first in firsts]


def _assembled(parts: Sequence[Tensor], chunks: Sequence[range], count: int) -> Tensor:
    """Rows of all ranks in their order, fp32 `[count, D]` on the CPU, of each pass's `[size, D]`."""
    rows = torch.zeros(count, parts[0].shape[1], dtype=torch.float32, device=parts[0].device)
    for part, chunk in zip(parts, chunks, strict=True):
        rows[chunk.start : chunk.stop] = part[: len(chunk)].float()
    return all_reduce(rows).cpu()  # exact: no two ranks have the same row


def _merged(faults: dict[int, str]) -> dict[int, str]:
    """Those of all ranks, by row."""
    if world_size() == 1:
        return dict(sorted(faults.items()))
    everywhere: list[dict[int, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(everywhere, faults)
    return dict(sorted(item for part in everywhere for item in part.items()))
