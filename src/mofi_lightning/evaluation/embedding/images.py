"""Images and texts to embeddings: batches, threads that decode, a progress bar, broken images counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mofi_lightning.encoders.decoding import UndecodableImage, decode, fault_kinds
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.evaluation.embedding.progress import progress
from mofi_lightning.types import InputError

#: Images or texts a forward pass, where nothing else is said.
BATCH_SIZE = 256


class EmbeddingModel(Protocol):
    """What can be measured: `DualEncoder`, or anything of this form.

    A model may also have `encode_image_and_features(image)`, which gives `[B, F]` features before the
    projection too; without it the embedding stands for them. `text` (None where texts cannot be embedded)
    and `label_space` (maps embeddings to label vectors, or None) are of our models.

    Example:
        A model of one's own, measured as it is:

        >>> import torch
        >>> from mofi_lightning.encoders.preprocess import Preprocess
        >>> from mofi_lightning.evaluation.datasets import at_path
        >>> from mofi_lightning.evaluation.embedding.embedder import Embedder
        >>> from mofi_lightning.evaluation.evaluators import Retrieval
        >>> class Thumbnails(torch.nn.Module):
        ...     text = label_space = None
        ...     preprocess = Preprocess(size=8)
        ...
        ...     def encode_image(self, image):
        ...         return torch.nn.functional.normalize(image.flatten(1).float(), dim=1)
        >>> data = at_path("tests/data/emoji_slice/test.parquet").open()
        >>> 0 < Retrieval()(Embedder(Thumbnails()), data).metrics()["map"] < 1
        True

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
        usable = torch.ones(len(self.embeddings), dtype=torch.bool)
        usable[list(self.failed)] = False
        return usable.nonzero().flatten()

    def failures(self) -> dict[str, int]:
        """Number of undecodable images by kind of fault, most frequent first."""
        return fault_kinds(self.failed.values())

    def left_out(self, keys: Sequence[str]) -> tuple[str, ...]:
        """A note a kind of fault, with the first of the images that have it."""
        notes = []
        for kind, count in self.failures().items():
            rows = [row for row, why in sorted(self.failed.items()) if why.partition(":")[0] == kind]
            notes.append(f"{count:,} images left out: {kind} ({listed(keys[row] for row in rows)})")
        return tuple(notes)


class EmbeddedBatch(NamedTuple):
    """What one forward pass gave.

    Attributes:
        rows: positions in the batch of the M images that could be decoded, int64.
        embeddings: float32 `[M, D]`, on the CPU.
        features: float32 `[M, F]`; the same tensor for a model without a projection.
        failed: position -> why, for the others.
    """

    rows: Tensor
    embeddings: Tensor
    features: Tensor
    failed: dict[int, str]


def embed_batches(
    model: EmbeddingModel,
    batches: Iterable[Sequence[bytes]],
    workers: int = 2,
    names: Sequence[object] | None = None,
) -> Iterator[EmbeddedBatch]:
    """Embed encoded image files, each batch in one forward pass, while threads decode the next.

    Args:
        model: on whatever device its parameters are.
        batches: encoded files (JPEG, PNG, ...); read once, in order, one batch ahead.
        workers: threads.
        names: of the images in errors, in order; may grow as `batches` are read. By default their numbers.

    Raises:
        InputError: the model, or its preprocessing, fails.
    """
    preprocess, device = model.preprocess, device_of(model)

    def name(row: int) -> str:
        return repr(row if names is None else names[row])

    def numbered() -> Iterator[list[tuple[int, bytes]]]:
        first = 0
        for batch in batches:
            yield [*enumerate(batch, first)]
            first += len(batch)

    def prepare(item: tuple[int, bytes]) -> Tensor | str:
        row, data = item
        try:
            image = decode(data)
            with _named_failures(f"preprocessing image {name(row)}"):
                pixels = preprocess(image)
                if not isinstance(pixels, Tensor):
                    raise TypeError(f"it gave a {type(pixels).__name__}, no tensor")
                return pixels
        except UndecodableImage as error:
            return str(error)

    stream, first = numbered(), 0
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = pool.map(prepare, next(stream, ()))
        while prepared := list(pending):
            pending = pool.map(prepare, next(stream, ()))
            good = [row for row, image in enumerate(prepared) if isinstance(image, Tensor)]
            failed = {row: why for row, why in enumerate(prepared) if isinstance(why, str)}
            embeddings = features = torch.empty(0, 0)
            if good:
                last = first + len(prepared) - 1
                with _named_failures(f"embedding images {name(first)} to {name(last)}"):
                    images = torch.stack([image for image in prepared if isinstance(image, Tensor)])
                    embeddings, features = encode(model, images.to(device))
            first += len(prepared)
            yield EmbeddedBatch(torch.tensor(good, dtype=torch.long), embeddings, features, failed)


def embed_images(
    model: EmbeddingModel,
    images: Iterable[bytes],
    batch_size: int = BATCH_SIZE,
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
    stream = iter(images)
    batches = iter(lambda: list(islice(stream, batch_size)), [])
    parts: list[EmbeddedBatch] = []
    rows: list[Tensor] = []
    failed: dict[int, str] = {}
    count = 0
    with progress(description, len(images) if isinstance(images, Sequence) else None) as advance:
        for part in embed_batches(model, batches, workers):
            failed |= {count + row: why for row, why in part.failed.items()}
            if len(part.rows):
                rows.append(count + part.rows)
                parts.append(part)
            count += len(part.rows) + len(part.failed)
            advance(len(part.rows) + len(part.failed))
    if not parts:
        raise nothing_embedded(count, failed)

    def spread(vectors: list[Tensor]) -> Tensor:
        return torch.full((count, vectors[0].shape[1]), torch.nan).index_copy_(
            0, torch.cat(rows), torch.cat(vectors)
        )

    embeddings = spread([part.embeddings for part in parts])
    same = all(part.features is part.embeddings for part in parts)
    return EmbeddedImages(embeddings, embeddings if same else spread([p.features for p in parts]), failed)


def nothing_embedded(count: int, failed: Mapping[int, str]) -> InputError:
    """The error for `count` images of which none has an embedding."""
    why = f"; the first: {failed[min(failed)]}" if failed else ""
    return InputError(f"none of {count} images could be embedded{why}")


@torch.no_grad()
def encode(model: EmbeddingModel, image: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings `[B, D]` and features `[B, F]` of preprocessed images, fp32 on the CPU."""
    both = getattr(model, "encode_image_and_features", None)
    if both is None:
        embeddings = model.encode_image(image).float().cpu()
        return embeddings, embeddings
    embeddings, features = both(image)
    return embeddings.float().cpu(), features.float().cpu()


def output_widths(model: EmbeddingModel) -> tuple[int, int]:
    """D and F of a model, from a black image."""
    black = model.preprocess(torch.zeros(3, 64, 64, dtype=torch.uint8))[None]
    embeddings, features = encode(model, black.to(device_of(model)))
    return embeddings.shape[1], features.shape[1]


@torch.no_grad()
def embed_texts(model: EmbeddingModel, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> Tensor:
    """Embed `texts`: float32 `[N, D]` on the CPU.

    Raises:
        InputError: the model has no text tower, or there are no texts.
    """
    if model.text is None:
        raise InputError(f"{type(model).__name__} has no text tower; it embeds images only")
    if not texts:
        raise InputError("there are no texts to embed")
    parts = []
    for first in range(0, len(texts), batch_size):
        batch = list(texts[first : first + batch_size])
        with _named_failures(f"embedding texts {first} to {first + len(batch) - 1}"):
            parts.append(model.encode_text(batch).float().cpu())
    return torch.cat(parts)


@contextmanager
def _named_failures(step: str) -> Iterator[None]:
    """What a model raises, whatever its kind, as an error of this model: others can go on."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{step} failed: {type(error).__name__}: {why}") from error


def device_of(model: EmbeddingModel) -> torch.device:
    """Device of the model's parameters; the CPU for a model without any."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
