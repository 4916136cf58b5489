"""Which classes take part in a step of sampled softmax: the same on every rank and after every resume."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def counted_generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of `key` alone, such as (seed, number of the draw).

    Randomness that is counted instead of carried needs no saved state and is the same for any number of
    ranks.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def sample_classes(seed: int, draw: int, labels: Tensor, num_classes: int, num_sampled: int) -> Tensor:
    """Class ids of one step: all labels of the global batch and uniform others.

    The time grows with `num_sampled` and not with `num_classes`.

    Args:
        seed: of the run.
        draw: number of the draw within the run.
        labels: int64 `[N]` of the *global* batch, -1 for none.
        num_classes: C.
        num_sampled: K, classes to return; more only if the labels alone are more, all if K >= C.

    Returns:
        int64 `[K]`, distinct and ascending, on the CPU.
    """
    if num_sampled >= num_classes:
        return torch.arange(num_classes)
    positives = labels[labels >= 0].cpu().unique()
    missing = max(num_sampled - len(positives), 0)
    generator = counted_generator(seed, draw)
    others = torch.empty(0, dtype=torch.int64)
    while len(others) < missing:
        drawn = torch.randint(num_classes, (2 * num_sampled,), generator=generator)
        others = torch.cat([others, drawn]).unique()
        others = others[~torch.isin(others, positives)]
    # `unique` sorts: a prefix would favour small ids
    others = others[torch.randperm(len(others), generator=generator)[:missing]]
    return torch.cat([positives, others]).sort().values
