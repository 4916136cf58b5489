"""The largest tensor that a computation makes."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from traceback import walk_stack
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mofi_lightning.testing.checks import place


@dataclass(frozen=True)
class LargestTensor:
    """The largest tensor of a forward and a backward.

    Attributes:
        rows: B of the batch.
        shape: of the tensor.
        nbytes: its memory.
        operation: torch's name of what made it, and the line of the code that called it, where there is one.
        stage: 'forward' or 'backward'.
    """

    rows: int
    shape: tuple[int, ...]
    nbytes: int
    operation: str
    stage: str

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape)) or "one number"
        return (
            f"{size}, {self.nbytes / 1e6:.3g} MB, made by {self.operation} in {self.stage}, "
            f"at {self.rows} rows"
        )


class TensorWatch(TorchDispatchMode):
    """Keeps what is known of the largest tensor made while it is active; views and in-place results aside."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.stage = "forward"
        self._rows = rows
        self.largest = LargestTensor(rows, (), 0, "nothing", self.stage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if not isinstance(x, Tensor) or _storage(x) in given:
                continue
            nbytes = math.prod(x.shape) * x.element_size()
            if nbytes > self.largest.nbytes:
                made_by = f"{func.overloadpacket}{place(walk_stack(sys._getframe(1)))}"
                self.largest = LargestTensor(self._rows, tuple(x.shape), nbytes, made_by, self.stage)
        return result


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
