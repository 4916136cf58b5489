"""Memory of a computation: bytes of the tensors that are alive at a time, and of the whole process."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Peak of the bytes of storages that are alive, beyond those that existed at entry.

    Every operator passes here, also those inside custom autograd functions and (on the CPU, where it runs in
    the caller's thread) those of the backward. What an operator's kernel allocates for itself and frees again
    is not seen: read `peak_rss_growth` beside it.

        with LiveMemory() as memory:
            loss(image, text).backward()
        print(memory.peak)

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at a time.
        largest: bytes of the largest storage made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._bytes: dict[int, int] = {}  # of the storages made since entry
        self._older: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._bytes and storage._cdata not in self._older:
                self._older.add(storage._cdata)
                weakref.finalize(storage, self._older.discard, storage._cdata)
        result = func(*args, **kwargs)
        for storage in _storages(result):
            self._count(storage)
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._older:
            return
        if key not in self._bytes:
            self._bytes[key] = 0
            weakref.finalize(storage, self._freed, key)
        self.live += storage.nbytes() - self._bytes[key]  # an operator may have resized it
        self._bytes[key] = storage.nbytes()
        self.largest = max(self.largest, storage.nbytes())

    def _freed(self, key: int) -> None:
        self.live -= self._bytes.pop(key)


def peak_rss_growth(call: Callable[[], object]) -> int:
    """Bytes by which the process's peak resident memory exceeds what it holds before `call` (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _kilobytes("VmRSS")
    call()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
