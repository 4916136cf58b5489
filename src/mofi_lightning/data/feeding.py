"""How many rows a second a data set gives: read only, decoded, or as training takes them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from time import perf_counter
from typing import NamedTuple

import torch

from mofi_lightning.data.batching import BatchBuilder, Example
from mofi_lightning.data.mixing import BadRowPolicy, BatchLoader, Mixture, Stream
from mofi_lightning.data.schema import Row
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.types import Batch, Vocabulary

# more than anyone waits for
_STEPS = 1 << 40


class Speed(NamedTuple):
    """Rows that came in some seconds, and the bytes of their image files."""

    rows: int
    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


class _Reading(BatchBuilder):
    """Its images are the numbers of bytes of their files."""

    def example(self, row: Row, generator: Random) -> Example:
        return Example(row.key, torch.tensor(len(row.image)), -1, row.text)


class _Decoding(_Reading):
    """Also decodes the images, for nothing."""

    def example(self, row: Row, generator: Random) -> Example:
        decode(row.image)
        return super().example(row, generator)


def stages(size: int, vocabulary: Vocabulary | None) -> dict[str, BatchBuilder]:
    """What makes batches of rows in each stage; the last one is that of training with images of `size`."""
    classes = {"read": _Reading, "read, decode": _Decoding, "read, decode, augment": BatchBuilder}
    parts = (Preprocess(size=size), Augmentation(), TextSampling(), vocabulary, None, 0)
    return {name: builder(*parts) for name, builder in classes.items()}


def measure(stream: Stream, builder: BatchBuilder, num_workers: int, seconds: float) -> Speed:
    """Load batches for some seconds, not counting the start of the processes."""
    mixture = Mixture([stream], builder, _STEPS, rank=0, world_size=1)
    loader = BatchLoader(mixture, num_workers, BadRowPolicy(max_share=1.0))
    batches = iter(loader)
    for _ in range(max(1, num_workers)):  # until every process has begun
        next(batches)
    return _count(batches, seconds)


def _count(batches: Iterator[Batch], seconds: float) -> Speed:
    """Rows and bytes of the batches of the next seconds, of one batch at least."""
    start = perf_counter()
    rows = size = 0
    for batch in batches:
        rows += len(batch["key"])
        size += int(batch["image"].sum()) if batch["image"].ndim == 1 else 0
        if (elapsed := perf_counter() - start) >= seconds:
            break
    return Speed(rows, size, elapsed)
