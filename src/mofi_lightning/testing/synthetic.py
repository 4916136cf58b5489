"""Synthetic images and texts that train in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.testing.batches import synthetic_vocabulary
from mofi_lightning.types import Batch, InputError, Tokens


class _SyntheticLoader:
    """Batch `step` is a function of (seed, step); a rank takes its slice of the rows; resumed at any step."""

    def __init__(self, data: SyntheticDataModule, steps: range) -> None:
        self.data = data
        self.steps = steps
        self.done = 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        self.done %= max(1, len(self.steps))  # a finished pass begins anew
        for step in self.steps[self.done :]:
            self.done += 1
            yield self._mine(self.data.global_batch(step))

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.done = state_dict["done"]

    def _mine(self, batch: Batch) -> Batch:
        rows = self.data.rows // world_size()
        mine = slice(rank() * rows, (rank() + 1) * rows)
        local: Batch = {
            "image": batch["image"][mine],
            "entity": batch["entity"][mine],
            "key": batch["key"][mine],
        }
        if "text" in batch:
            local["text"] = Tokens(*(part[mine] for part in batch["text"]))
        return local


class SyntheticDataModule(LightningDataModule):
    """Noisy views of one random pattern an entity, with its name as text; the last quarter is unlabelled.

    Args:
        rows: rows of the global batch; a multiple of the number of processes.
        num_entities: entities of the vocabulary, at most 10,000.
        seed: of patterns and noise.
    """

    def __init__(self, rows: int = 64, num_entities: int = 100, seed: int = 0) -> None:
        super().__init__()
        self.rows = rows
        self.num_entities = num_entities
        self.seed = seed
        self.vocabulary = synthetic_vocabulary(num_entities)
        self._size = 32
        self._tokenizer: Tokenizer | None = None
        self._context_length = 0

    @property
    def fields(self) -> dict[str, frozenset[str]]:
        """The one source carries everything."""
        return {"synthetic": frozenset({"image", "text", "entity"})}

    def use(self, preprocess: Preprocess, tokenizer: Tokenizer | None, context_length: int) -> None:
        """Take image size and tokenizer from the model."""
        self._size = preprocess.size
        self._tokenizer = tokenizer
        self._context_length = context_length

    def setup(self, stage: str) -> None:
        """Check that the rows can be split over the ranks."""
        if self.rows % world_size():
            raise InputError(
                f"rows={self.rows} cannot be split over {world_size()} processes; use a multiple"
            )

    def global_batch(self, step: int) -> Batch:
        """All ranks' rows of `step`: image uint8 `[B, 3, size, size]`, entity, text if it has a tokenizer."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        entity = torch.randint(self.num_entities, (self.rows,), generator=generator)
        image = torch.stack([self._pattern(int(e)) for e in entity])
        image = (image + 40 * torch.randn(image.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
        batch: Batch = {"image": image, "key": [f"{step}-{row}" for row in range(self.rows)]}
        if self._tokenizer is not None:
            batch["text"] = self._tokenizer(
                [self.vocabulary.names[int(e)] for e in entity], self._context_length
            )
        entity[self.rows - self.rows // 4 :] = -1
        batch["entity"] = entity
        return batch

    def _pattern(self, entity: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 7_919 + entity)
        coarse = 255 * torch.rand(1, 3, 4, 4, generator=generator)
        return torch.nn.functional.interpolate(coarse, size=(self._size, self._size), mode="bilinear")[0]

    def train_dataloader(self) -> Any:
        """`trainer.max_steps` batches."""
        return _SyntheticLoader(self, range(max(1, self.trainer.max_steps if self.trainer else 1)))

    def val_dataloader(self) -> Any:
        """Two batches that training never sees."""
        return _SyntheticLoader(self, range(2**30 - 2, 2**30))
