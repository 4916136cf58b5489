"""Images and texts to embeddings: batches, threads that decode, a progress bar, broken images counted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from rich.progress import track
from torch import Tensor, nn

from mofi_lightning.encoders.decoding import UndecodableImage, decode, fault_kinds
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.types import InputError


class EmbeddingModel(Protocol):
    """What can be measured: `DualEncoder`, or anything of this form.

    A model may also have `encode_image_and_features(image)`, which gives `[B, F]` features before the
    projection too; without it the embedding stands for them. `text` (None where texts cannot be embedded)
    and `label_space` (maps embeddings to label vectors, or None) are of our models.

    Attributes:
        text: its text tower; None if it has none.
        label_space: maps its embeddings to label vectors; None if there is none.
    """

    text: Any
    label_space: LabelSpace | None

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        """Brings a decoded image, uint8 `[3, H, W]`, to the form that `encode_image` takes."""

    def encode_image(self, image: Tensor, /) -> Tensor:
        """Preprocessed images `[B, 3, H, W]` to L2-normalised embeddings `[B, D]`."""

    def encode_text(self, texts: Sequence[str], /) -> Tensor:
        """Texts to L2-normalised embeddings `[B, D]`."""


@dataclass(frozen=True)
class EmbeddedImages:
    """Embeddings of N images.

    Attributes:
        embeddings: float32 `[N, D]` on the CPU, in the order of the images; a row of NaN for an image that
            could not be decoded.
        features: float32 `[N, F]`, before the projection; the embeddings of a model without one.
        failed: row -> why, for these.
    """

    embeddings: Tensor
    features: Tensor
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def usable(self) -> Tensor:
        """Rows that have an embedding, int64, ascending."""
        return torch.tensor(
            [row for row in range(len(self.embeddings)) if row not in self.failed], dtype=torch.long
        )

    def failures(self) -> dict[str, int]:
        """Number of undecodable images by kind of fault, most frequent first."""
        return fault_kinds(self.failed.values())


@torch.inference_mode()
def embed_images(
    model: EmbeddingModel,
    images: Iterable[bytes],
    batch_size: int = 256,
    workers: int = 2,
    description: str | None = None,
) -> EmbeddedImages:
    """Embed encoded image files.

    Args:
        model: on whatever device its parameters are.
        images: encoded files (JPEG, PNG, ...); read once, in order.
        batch_size: images a forward pass.
        workers: threads that decode the next batch while the model embeds this one.
        description: title of a progress bar; None shows none.

    Raises:
        InputError: no image, or none that can be decoded.
    """
    preprocess, device = model.preprocess, device_of(model)

    def prepare(data: bytes) -> Tensor | str:
        try:
            return preprocess(decode(data))
        except UndecodableImage as error:
            return str(error)

    total = len(images) if isinstance(images, Sequence) else None
    shown = description is not None and sys.stdout.isatty()
    stream = iter(track(images, description or "", total=total, transient=True) if shown else images)
    rows: list[tuple[Tensor, Tensor] | None] = []
    failed: dict[int, str] = {}
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = pool.map(prepare, islice(stream, batch_size))
        while prepared := list(pending):
            pending = pool.map(prepare, islice(stream, batch_size))
            good = [image for image in prepared if isinstance(image, Tensor)]
            failed |= {len(rows) + i: p for i, p in enumerate(prepared) if isinstance(p, str)}
            embedded = iter(zip(*encode(model, torch.stack(good).to(device)), strict=True) if good else ())
            rows.extend(next(embedded) if isinstance(image, Tensor) else None for image in prepared)
    first = next((row for row in rows if row is not None), None)
    if first is None:
        why = f"; the first: {failed[0]}" if failed else ""
        raise InputError(f"none of {len(rows)} images could be embedded{why}")
    missing = tuple(torch.full_like(part, torch.nan) for part in first)
    embeddings, features = zip(*(missing if row is None else row for row in rows), strict=True)
    return EmbeddedImages(torch.stack(embeddings), torch.stack(features), failed)


def encode(model: EmbeddingModel, image: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings `[B, D]` and features `[B, F]` of preprocessed images, fp32 on the CPU."""
    both = getattr(model, "encode_image_and_features", None)
    if both is None:
        embeddings = model.encode_image(image).float().cpu()
        return embeddings, embeddings
    embeddings, features = both(image)
    return embeddings.float().cpu(), features.float().cpu()


@torch.inference_mode()
def embed_texts(model: EmbeddingModel, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Embed `texts`: float32 `[N, D]` on the CPU.

    Raises:
        InputError: the model has no text tower, or there are no texts.
    """
    if model.text is None:
        raise InputError(f"{type(model).__name__} has no text tower; it embeds images only")
    if not texts:
        raise InputError("there are no texts to embed")
    parts = [
        model.encode_text(list(texts[first : first + batch_size])).float().cpu()
        for first in range(0, len(texts), batch_size)
    ]
    return torch.cat(parts)


def device_of(model: EmbeddingModel) -> torch.device:
    """Device of the model's parameters; the CPU for a model without any."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
