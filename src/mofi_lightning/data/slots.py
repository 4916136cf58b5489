"""Memory for the images of batches that is used again: fresh shared pages cost more than filling them."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

# a worker fills one, two wait in its queue, and one is with the consumer
_SLOTS = 4


class ImageSlots:
    """Places for the images of batches, in memory that workers and consumer share.

    A worker fills a free slot; the consumer's process frees it when nothing views the images any more. Where
    all slots are taken, or without workers, a batch has fresh memory.

    Args:
        num_workers: processes that fill slots.
    """

    def __init__(self, num_workers: int) -> None:
        self._taken = torch.zeros(num_workers * _SLOTS, dtype=torch.uint8).share_memory_()
        self._mine: dict[int, Tensor] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, int | None]:
        """Memory for a batch's images, and the number of its slot (None for fresh memory)."""
        worker = get_worker_info()
        mine = range(0) if worker is None else range(worker.id * _SLOTS, (worker.id + 1) * _SLOTS)
        for slot in mine:
            if not self._taken[slot]:
                if slot not in self._mine:
                    self._mine[slot] = _empty(shape, dtype).share_memory_()
                self._taken[slot] = 1
                return self._mine[slot], slot
        return _empty(shape, dtype), None

    def give(self, slot: int) -> None:
        """Free a slot that was taken and not filled."""
        self._taken[slot] = 0

    def lend(self, images: Tensor, slot: int | None) -> Tensor:
        """The images of a slot, which is free again when the result and all its views are gone."""
        if slot is None:
            return images
        free = self._taken[slot].zero_
        if not images.is_shared():  # copied into pinned memory
            free()
            return images
        array = images.numpy()
        weakref.finalize(array, free).atexit = False
        return torch.from_numpy(array)


class BatchImages:
    """The images of one batch, each copied into its place as soon as it is made.

    Args:
        slots: where the memory comes from.
        rows: of the batch.

    Attributes:
        slot: the number of the slot that holds them, None for fresh memory.
    """

    def __init__(self, slots: ImageSlots, rows: int) -> None:
        self.slot: int | None = None
        self._slots, self._rows = slots, rows
        self._images: Tensor | None = None

    def put(self, row: int, image: Tensor) -> Tensor:
        """Copy an image, of the shape and type of all, into row `row`; the copy."""
        if self._images is None:
            self._images, self.slot = self._slots.take((self._rows, *image.shape), image.dtype)
        return self._images[row].copy_(image)

    def tensor(self) -> Tensor:
        """All images, `[rows, ...]`."""
        assert self._images is not None
        return self._images

    def drop(self) -> None:
        """Give the memory up: there will be no batch."""
        if self.slot is not None:
            self._slots.give(self.slot)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # resized images are channels last, and so does the image tower want them
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout)
