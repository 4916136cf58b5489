"""How much is made at a time where a product is never held whole."""

from __future__ import annotations

import torch

_CPU = 2**20  # entries that stay in the cache of a CPU
_OTHER = 2**24  # 64 MiB in fp32: enough to keep a GPU busy, little of its memory


def chunk_entries(device: torch.device) -> int:
    """Entries of what is made at a time on `device`."""
    return _CPU if device.type == "cpu" else _OTHER
