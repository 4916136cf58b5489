"""Passing tensors round the ring of ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from mofi_lightning.distributed import rank, world_size


class Passing(NamedTuple):
    """A tensor on its way to the next rank, and the previous rank's on its way here."""

    arriving: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """The previous rank's tensor."""
        for work in self.works:
            work.wait()
        return self.arriving


def pass_on(x: Tensor) -> Passing:
    """Send `x` to the next rank and receive the previous rank's, of the same shape; every rank joins in."""
    if world_size() == 1:
        return Passing(x, [])
    x, arriving = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    to, source = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    operations = [dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, arriving, source)]
    return Passing(arriving, dist.batch_isend_irecv(operations))
