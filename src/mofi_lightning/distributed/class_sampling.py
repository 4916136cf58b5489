"""Which classes take part in a step of sampled softmax: the same on every rank and after every resume."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ROUNDS = 8
_MIN_BITS = 10  # of the permutation's domain: with smaller halves the few keys would show
_MULTIPLIERS = (0x7FEB352D, 0x6C8E9CF5)  # odd, below 2**31


def counted_generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of `key` alone, such as (seed, number of the draw).

    Randomness that is counted instead of carried needs no saved state and is the same for any number of
    ranks.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def sample_classes(
    seed: int, draw: int, labels: Tensor, num_classes: int, num_sampled: int
) -> tuple[Tensor, Tensor]:
    """Class ids of one step: all labels of the global batch and uniform others.

    The others are the first of a pseudo-random permutation of all classes that are no labels. The
    permutation is computed, not stored: time and memory grow with `num_sampled` and not with `num_classes`,
    and every device computes the same.

    Args:
        seed: of the run.
        draw: number of the draw within the run.
        labels: int64 `[N]` of the *global* batch, -1 for none.
        num_classes: C.
        num_sampled: K, classes to return; more only if the labels alone are more, all if K >= C.

    Returns:
        int64 `[K]`, distinct, on the device of `labels`: the labels' classes, ascending, and then the others;
        and int64 `[N]`, where each label stands in it, -1 for none.
    """
    labelled = labels >= 0
    positives, positions = labels[labelled].unique(return_inverse=True)
    target = torch.full_like(labels, -1)
    target[labelled] = positions
    bits = max(_MIN_BITS, (num_classes - 1).bit_length())
    keys = np.random.SeedSequence((seed, draw)).generate_state(_ROUNDS, np.uint32) >> 1
    # of the domain's 2**bits numbers those below C are ids, and those that lead to labels are known
    taken = _permute(positives, keys[::-1].tolist(), bits, inverse=True)
    ids = [positives]
    missing = min(num_sampled, num_classes) - len(positives)
    start = 0
    while missing > 0:
        expected = math.ceil(missing * 2**bits / (num_classes - len(positives)))
        stop = min(start + expected + 4 * math.isqrt(expected), 2**bits)
        numbers = _permute(torch.arange(start, stop, device=labels.device), keys.tolist(), bits)
        other = numbers < num_classes
        other[taken[(taken >= start) & (taken < stop)] - start] = False
        ids.append(numbers[other][:missing])
        missing -= len(ids[-1])
        start = stop
    return torch.cat(ids), target


def _permute(numbers: Tensor, keys: list[int], bits: int, inverse: bool = False) -> Tensor:
    """Where a keyed permutation of 0..2**bits - 1 takes `numbers`: a Feistel network (Luby, Rackoff, 1988).

    The halves may differ by a bit, so they take turns instead of places. The inverse takes the keys in
    reverse; their number is even.
    """
    low = bits - bits // 2
    halves = [numbers & (1 << low) - 1, numbers >> low]
    widths = [low, bits - low]
    for number, key in enumerate(keys):
        turn = (number + inverse) % 2
        halves[turn] = halves[turn] ^ _mix(halves[1 - turn], key, widths[turn])
    return halves[1] << low | halves[0]


def _mix(x: Tensor, key: int, bits: int) -> Tensor:
    """`bits` pseudo-random bits of `x` and a key; both below 2**31, so that no product overflows."""
    x = x ^ key
    for multiplier in _MULTIPLIERS:
        x = x.mul_(multiplier)
        x = x.bitwise_xor_(x >> 31).bitwise_and_((1 << 31) - 1)
    return x.bitwise_and_((1 << bits) - 1)
