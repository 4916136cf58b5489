"""Bytes of the tensors that are alive at a time, and what they are for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

WORK = "activations"
GATHERED = "gathered parameters"
GRADIENTS = "gradients"


class LiveBytes(TorchDispatchMode):
    """Follows every storage from its making to its end, on a CPU and for tensors without memory alike.

    What an operator's kernel allocates for itself and frees again is not seen. Everything that FSDP makes in
    order to gather parameters and to scatter gradients is kept apart from the activations.

    Attributes:
        live: bytes alive now, by what they are for.
        peak: those at the moment when most were alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._total = self._most = 0
        self._storages: dict[int, tuple[str, int]] = {}  # by address: what it is for, and its bytes

    def hold(self, tensors: Mapping[str, Iterable[Tensor | None]]) -> None:
        """Take in tensors that exist already, by what they are for; of two names the first counts."""
        for name, group in tensors.items():
            for tensor in group:
                if tensor is not None:
                    self._count(local(tensor).untyped_storage(), name)

    def rename(self, name: str, tensors: Iterable[Tensor | None]) -> None:
        """Count `tensors` as `name` from now on."""
        for tensor in tensors:
            if tensor is not None:
                storage = local(tensor).untyped_storage()
                self._count(storage, name)
                before, size = self._storages[storage._cdata]
                self._storages[storage._cdata] = (name, size)
                self.live[before] -= size
                self.live[name] += size

    def start(self) -> None:
        """Forget the peak so far."""
        self._most = self._total
        self.peak = Counter(self.live)

    def __enter__(self) -> LiveBytes:
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            # FSDP frees and takes the memory of gathered parameters so, past the dispatcher
            result = self._resize(storage, size)
            self._count(storage, GATHERED)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and look at what it returns."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as what is done to the local tensors
        result = self.run(func, args, kwargs or {})
        by_fsdp = func.namespace == "fsdp"
        for tensor in tensors_in(result):
            self._count(tensor.untyped_storage(), GATHERED if by_fsdp else WORK)
        if by_fsdp:
            # what FSDP made for its collectives; the shards themselves are held under another name
            self.rename(GATHERED, [x for x in tensors_in((args, kwargs)) if self.purpose(x) == WORK])
        if self._total > self._most:
            self._most = self._total
            self.peak = Counter(self.live)
        return result

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator."""
        return func(*args, **kwargs)

    def purpose(self, x: Tensor) -> str:
        """What the storage of `x` is for; empty where it was never seen."""
        return self._storages.get(x.untyped_storage()._cdata, ("", 0))[0]

    def _count(self, storage: torch.UntypedStorage, name: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages[key] = (name, 0)
            weakref.finalize(storage, self._drop, key)
        name, before = self._storages[key]
        if size != before:  # new, or an operator has resized it
            self._storages[key] = (name, size)
            self.live[name] += size - before
            self._total += size - before

    def _drop(self, key: int) -> None:
        name, size = self._storages.pop(key)
        self.live[name] -= size
        self._total -= size


def local(tensor: Tensor) -> Tensor:
    """The rank's own part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """All tensors among the arguments or results of an operator."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))
