"""A step without memory or arithmetic: tensors of numbers have shapes only, labels and positions are real."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from traceback import walk_stack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from mofi_lightning.training.planning.live_bytes import GRADIENTS, LiveBytes, tensors_in
from mofi_lightning.types import InputError

aten, c10d = torch.ops.aten, torch.ops.c10d

# what makes tensors from values, not of a shape only
_OF_VALUES = {
    aten.arange,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten.linspace,
    aten.randint,
    aten.randperm,
    aten.scalar_tensor,
}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_IN_PLACE = {aten.addmm_: aten.addmm, aten.baddbmm_: aten.baddbmm}
_ON_CPU = "_for_cpu"  # attention of the CPU, which takes as many operations as that of GPUs

_FSDP = "_fully_shard"  # in the path of whoever sends parameters and gradients

# operator: its name, the argument that holds all ranks' parts, and how often that is sent
_COLLECTIVES = {
    "_allgather_base_": ("all-gather", 0, 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1, 1),
    "allreduce_": ("all-reduce", 0, 2),
}


class Weightless(LiveBytes):
    """Runs operators on `FakeTensor`s, and for real where only labels, positions and the like take part.

    The step's classes are chosen by sorting and comparing labels: there shapes depend on values, which
    tensors without memory do not have. What is computed from labels and meets a number loses its memory, too.

    Attributes:
        flops: operations so far, a multiply-add counted as two.
        received: bytes that reached this rank so far, by what was sent, by collective and by number of ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode()
        self.flops = 0
        self.received: Counter[tuple[str, str, int]] = Counter()

    def __enter__(self) -> Weightless:
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the operator, with memory or without, and count what it computes and sends."""
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        given = list(tensors_in((args, kwargs)))
        weightless = any(isinstance(x, FakeTensor) for x in given)
        if not weightless and (given or self._has_values(func, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        places = _overwritten(func)
        if places is not None:
            written = [args[place] if place < len(args) else kwargs[name] for place, name in places]
            if all(x.numel() for x in written):  # else an output that grows
                result = written[0] if len(written) == 1 else tuple(written) or None
                self._count_flops(packet, args, kwargs, result)
                return result  # nothing new is made, and the values are nobody's
        if packet in _INDEXING:
            args = (args[0], [i for index in args[1] for i in self._positions(index)], *args[2:])
        if not all(isinstance(x, FakeTensor) for x in given):
            args, kwargs = tree_map(self.without_memory, (args, kwargs))
        if packet is aten.split and args[0].shape[0] > 8 * args[1]:
            return self._ends(*args)
        result = func(*args, **kwargs)
        self._count_flops(packet, args, kwargs, result)
        if func.namespace == "c10d":
            self._count_bytes(func, args)
        return result

    def without_memory(self, x: Any) -> Any:
        """The tensor as one that has a shape only; anything else as it is."""
        if isinstance(x, Tensor) and not isinstance(x, FakeTensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
        return x

    @staticmethod
    def _has_values(func: Any, kwargs: Any) -> bool:
        """Whether a new tensor's values matter to shapes later on: those of whole numbers may."""
        dtype = kwargs.get("dtype")
        whole = dtype is not None and not dtype.is_floating_point
        return whole or func.overloadpacket in _OF_VALUES or func.namespace == "c10d"

    @staticmethod
    def _positions(index: Tensor | None) -> list[Tensor | None]:
        """A mask as the positions it stands for, which have a known number."""
        if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
            return [index]
        with unset_fake_temporarily():
            return list(index.nonzero(as_tuple=True))

    @staticmethod
    def _ends(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
        """First and last part of `x`, the rest empty: FSDP cuts parameters into as many as ranks."""
        count = -(-x.shape[dim] // size)
        with unset_fake_temporarily():
            rest = [torch.empty(0) for _ in range(count - 2)]
        first = aten.slice.Tensor(x, dim, 0, size)
        return [first, *rest, aten.slice.Tensor(x, dim, (count - 1) * size, x.shape[dim])]

    def _count_flops(self, packet: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = packet.__name__
        packet = (
            getattr(aten, name.replace(_ON_CPU, "")) if _ON_CPU in name else _IN_PLACE.get(packet, packet)
        )
        formula = flop_registry.get(packet)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))

    def _count_bytes(self, func: Any, args: Any) -> None:
        """What of the tensors comes from other ranks, by ring algorithms."""
        name = func.overloadpacket.__name__
        if name not in _COLLECTIVES:
            return
        kind, largest, passes = _COLLECTIVES[name]
        tensors = list(tensors_in(args[largest]))
        ranks = dist.ProcessGroup.unbox(args[1] if name == "allreduce_" else args[2]).size()
        by_fsdp = any(_FSDP in frame.f_code.co_filename for frame, _ in walk_stack(sys._getframe()))
        if by_fsdp and kind == "reduce-scatter":
            self.rename(GRADIENTS, [args[0]])
        purpose = "parameters and gradients" if by_fsdp else "features and losses"
        self.received[purpose, kind, ranks] += passes * sum(x.nbytes for x in tensors) * (ranks - 1) // ranks


@cache
def _overwritten(func: Any) -> list[tuple[int, str]] | None:
    """Place and name of the arguments that an operator fills and returns; None where it makes tensors."""
    schema = func._schema
    if func.namespace != "aten" or not schema.is_mutable or torch.Tag.inplace_view in func.tags:
        return None
    if not all(r.alias_info is not None and r.alias_info.is_write for r in schema.returns):
        return None
    if not schema.returns:
        return [] if func.overloadpacket.__name__.startswith(("_foreach", "_fused")) else None
    written = [
        (i, a.name)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return written if len(written) == len(schema.returns) else None


def drop_memory(module: nn.Module, mode: Weightless) -> None:
    """Replace parameters and floating-point buffers that hold values by ones that have a shape only."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not isinstance(parameter, FakeTensor):
                fake = mode.without_memory(parameter)
                part._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = mode.without_memory(buffer)


@contextlib.contextmanager
def pretended_ranks(world: int, sharded: bool | None = None) -> Iterator[None]:
    """Within, this process is rank 0 of `world`, whose collectives send nothing.

    Args:
        world: number of ranks.
        sharded: whether there is a process group, so that `Rehearsal` shards; None for several ranks only.

    Raises:
        InputError: it is part of a process group already.
    """
    if dist.is_initialized():
        raise InputError("a plan is made by one process of its own; run mofi plan without torchrun or srun")
    if not (world > 1 if sharded is None else sharded):
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()
