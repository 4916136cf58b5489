"""Rows to batches: decode, augment, draw the text, tokenise, stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from mofi_lightning.data.schema import Row
from mofi_lightning.data.texts import TextSampling
from mofi_lightning.data.transforms import Augmentation
from mofi_lightning.encoders.decoding import decode
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import Batch, Vocabulary


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

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Stack `examples`; texts are padded to the longest, rounded up to a multiple of 8."""
        batch = Batch(
            image=torch.stack([example.image for example in examples]),
            key=[example.key for example in examples],
        )
        if self.tokenizer is not None:
            batch["text"] = self.tokenizer([example.text for example in examples], self.context_length)
        if self.vocabulary is not None:
            batch["entity"] = torch.tensor([example.entity for example in examples])
        return batch
