"""Rows of a source to batches: share out, decode, augment, draw the text, tokenise, stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mofi_lightning.data.order import Order
from mofi_lightning.data.randomness import row_generator
from mofi_lightning.data.schema import Row
from mofi_lightning.data.shards import CorruptRow
from mofi_lightning.data.slots import BatchImages
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.encoders.decoding import UndecodableImage, decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import Batch, InputError, Vocabulary

# Where a replacement of a bad row is looked for: at the next positions, whose chunks are likely open, then
# ever further on, so that a damaged chunk costs few attempts.
_REPLACEMENTS = (*range(1, 17), *(2**n for n in range(5, 40)))


class Example(NamedTuple):
    """One row as a model sees it: image `[3, size, size]`, class id (-1 for none), text."""

    key: str
    image: Tensor
    entity: int
    text: str


@dataclass(frozen=True)
class BatchBuilder:
    """Makes examples of rows and batches of examples.

    Attributes:
        preprocess: the encoder's geometry.
        augmentation: None for evaluation, which uses exactly `preprocess`.
        texts: how a row's text is drawn.
        vocabulary: the entities; None where no source carries any, then batches have no 'entity'.
        tokenizer: None for a model without text encoder, then batches have no 'text'.
        context_length: the most tokens of a text.
    """

    preprocess: Preprocess
    augmentation: Augmentation | None
    texts: TextSampling
    vocabulary: Vocabulary | None
    tokenizer: Tokenizer | None
    context_length: int

    def example(self, row: Row, generator: Random) -> Example:
        """Make an example of `row`.

        Raises:
            UndecodableImage: its image is damaged.
        """
        label = self.texts.draw(row, self.vocabulary, generator)
        image = decode(row.image)
        if self.augmentation is None:
            image = self.preprocess(image)
        else:
            image = self.augmentation(image, self.preprocess, generator)
        return Example(row.key, image, label.entity, label.text)

    def batch(self, examples: Sequence[Example], images: Tensor) -> Batch:
        """Make a batch of `examples`, whose images are `images` `[B, 3, size, size]`.

        Texts are padded to the longest, rounded up to a multiple of 8.
        """
        batch = Batch(image=images, key=[example.key for example in examples])
        if self.tokenizer is not None:
            batch["text"] = self.tokenizer([example.text for example in examples], self.context_length)
        if self.vocabulary is not None:
            batch["entity"] = torch.tensor([example.entity for example in examples])
        return batch


class Reader(Protocol):
    """Random access to rows, which are stored in chunks."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def prefetch(self, chunks: Sequence[int]) -> None:
        """Take a hint: rows of these chunks are read soon, in this order."""


class BadRow(NamedTuple):
    """A row that cannot be used: its source, what is wrong in a few words, and where and why."""

    source: str
    kind: str
    message: str


@dataclass(frozen=True)
class Stream:
    """One source of a mixture.

    Attributes:
        name: of the source.
        reader: its rows.
        order: of its passes.
        rows: its rows of the *global* batch.
        seed: of its draws.
        fingerprint: of its rows; empty where the place in it is never saved.
    """

    name: str
    reader: Reader
    order: Order
    rows: int
    seed: int
    fingerprint: str = ""

    def examples(
        self, step: int, rank: int, world_size: int, builder: BatchBuilder, images: BatchImages, first: int
    ) -> tuple[list[Example], list[BadRow]]:
        """This rank's examples of a step, and the rows that others replaced.

        The images are put into `images` from row `first` on.

        Raises:
            InputError: rows that could replace one are bad as well, so that the data set must be.
        """
        visits = self.share(step, rank, world_size)
        examples: dict[int, Example] = {}
        bad: list[BadRow] = []
        # read chunk by chunk, also where the step holds rows of two groups of chunks: to open one takes time
        for n in sorted(range(len(visits)), key=lambda n: visits[n][2]):
            example, replaced = self._example(*visits[n], builder)
            examples[n] = example._replace(image=images.put(first + n, example.image))
            bad += [replaced] if replaced is not None else []
        return [examples[n] for n in range(len(visits))], bad

    def share(self, step: int, rank: int, world_size: int) -> list[tuple[int, int, int]]:
        """Position, pass and row of each of this rank's rows of a step."""
        visits = self.order.visits(step * self.rows, self.rows)
        placed = np.argsort(visits.places, kind="stable")
        size = self.rows // world_size
        mine = placed[rank * size : (rank + 1) * size]
        columns = (step * self.rows + mine, visits.passes[mine], visits.rows[mine])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def ahead(self, step: int, rank: int, world_size: int) -> tuple[range, list[int]]:
        """The chunks that this rank reads soon, and the positions up to which that is all that is to say."""
        start = step * self.rows
        # the shares' bounds stray by chance: the median of n random places has a deviation of 1 / (2 sqrt(n))
        margin = 2 / self.rows**0.5 if world_size > 1 else 0.0
        low, high = rank / world_size - margin, (rank + 1) / world_size + margin
        chunks, until = self.order.ahead(start, start + self.rows, low, high)
        return range(start, until), chunks

    def _example(
        self, position: int, pass_number: int, index: int, builder: BatchBuilder
    ) -> tuple[Example, BadRow | None]:
        """The example of row `index`, or that of a later row and what is wrong with this one.

        Which row takes its place depends on the position only, not on the rank.
        """
        found = self._try(pass_number, index, builder)
        if not isinstance(found, BadRow):
            return found, None
        for offset in _REPLACEMENTS:
            if offset >= 2 * len(self.reader):  # the next pass may begin with the rows that were tried
                break
            passes, rows, _ = self.order.visits(position + offset, 1)
            replacement = self._try(int(passes[0]), int(rows[0]), builder)
            if not isinstance(replacement, BadRow):
                return replacement, found
        raise InputError(
            f"source {self.name!r} has no usable row near its row {index} ({found.message}); "
            "`mofi data verify` lists the bad ones"
        )

    def _try(self, pass_number: int, index: int, builder: BatchBuilder) -> Example | BadRow:
        try:
            row = self.reader[index]
        except CorruptRow as error:
            return BadRow(self.name, "damaged row", str(error))
        classes = 0 if builder.vocabulary is None else len(builder.vocabulary.names)
        if classes and any(not 0 <= entity < classes for entity in row.entities):
            why = f"it names entities {row.entities}, the vocabulary has {classes}"
            return BadRow(self.name, "unknown entity", f"row {index} (key {row.key!r}): {why}")
        try:
            return builder.example(row, row_generator(self.seed, pass_number, row.key))
        except UndecodableImage as error:
            kind = str(error).partition(":")[0]
            return BadRow(self.name, kind, f"row {index} (key {row.key!r}): {error}")
