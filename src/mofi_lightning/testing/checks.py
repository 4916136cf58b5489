"""What the kits share: run checks in order, collect their findings, leave the caller's state as it was."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# in fp64 a true fault is far above this, and an objective that works in fp32 inside is below
TOLERANCE = 1e-5

Check = Callable[[], list[str]]


class Findings:
    """Findings of a run of named checks."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.found: list[str] = []

    def run(self, name: str, check: Check) -> bool:
        """Run `check`, which returns what is wrong or raises; true if nothing is."""
        self.checked.append(name)
        try:
            found = check()
        except Exception as error:
            found = [f"raises {last_line(error)}"]
        self.found += [f"{name}: {finding}" for finding in found]
        return not found

    def raise_if_any(self, subject: str) -> None:
        """Raise an AssertionError with a line for each finding."""
        if self.found:
            lines = "\n".join(f"- {finding}" for finding in self.found)
            raise AssertionError(f"{subject} fails {len(self.found)} of {len(self.checked)} checks:\n{lines}")


@contextmanager
def isolated(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Random generators and default dtype of the caller, as they were, whatever the block does."""
    before, default = random_state(), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        python, numpy, generator = before
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(generator)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> tuple[Any, Any, Tensor]:
    """State of the global generators of Python, NumPy and torch."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def drawn_from(before: tuple[Any, Any, Tensor]) -> list[str]:
    """Names of the global generators whose state is no longer that of `before`."""
    after = random_state()
    changed = {
        "random": before[0] != after[0],
        "numpy.random": any(np.any(x != y) for x, y in zip(before[1], after[1], strict=True)),
        "torch": not torch.equal(before[2], after[2]),
    }
    return [name for name, moved in changed.items() if moved]


def close(value: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether no entry differs by more than `tolerance` of the largest entry."""
    if value.shape != expected.shape:
        return False
    if not value.numel():
        return True
    value, expected = value.detach().double(), expected.detach().double()
    largest = torch.maximum(value.abs().max(), expected.abs().max())
    return bool((value - expected).abs().max() <= tolerance * largest + 1e-10)


def zero_dimensional(module: nn.Module) -> list[str]:
    """A finding for each 0-D parameter."""
    return [
        f"parameter {name!r} is 0-D, which sharding refuses; give it the shape (1,)"
        for name, parameter in module.named_parameters()
        if parameter.ndim == 0
    ]


def last_line(error: BaseException) -> str:
    """An error in one line, with the place where the objective or encoder raised it."""
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place(frames)}"


def place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """` (file.py:line)` of the first of `frames`, innermost first, that is not torch's.

    Empty if the kit's own comes before.
    """
    for frame, line in frames:
        file = frame.f_code.co_filename
        if file.startswith(os.path.dirname(__file__)):
            break
        if not file.startswith(os.path.dirname(torch.__file__)):
            return f" ({os.path.basename(file)}:{line})"
    return ""
