"""The one place that lays parallelism over modules: activation checkpointing, compiling, then sharding."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mofi_lightning.distributed.blocks import encoder_blocks
from mofi_lightning.types import InputError

_COMPILED_PER_BLOCK = 8  # training and evaluation, each with a few shapes


def checkpoint_activations(encoder: nn.Module) -> None:
    """Keep only the inputs of the encoder's blocks for the backward, which then runs the blocks again.

    Random numbers (dropout, drop path) are those of the first run. The blocks' names, and with them every key
    of a state dict, stay what they are.

    Raises:
        InputError: a trained encoder has no blocks.
    """
    for block in _blocks_for(encoder, "activation_checkpointing"):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(encoder: nn.Module) -> None:
    """Compile each block of the encoder; torch marks the token axis dynamic at its second length.

    Equal blocks share their code, so that a ViT compiles once; blocks that drop paths at a rate of their own
    compile one by one.

    Raises:
        InputError: a trained encoder has no blocks.
    """
    blocks = _blocks_for(encoder, "compile_blocks")
    for block in blocks:
        # blocks count together: past torch's own limit, 8, all others would run uncompiled with but a warning
        block.forward = torch.compile(  # type: ignore[call-overload]  # torch's overloads lack the limit
            block.forward, recompile_limit=_COMPILED_PER_BLOCK * len(blocks)
        )


def _blocks_for(encoder: nn.Module, setting: str) -> list[nn.Module]:
    blocks = encoder_blocks(encoder)
    if not blocks and any(p.requires_grad for p in encoder.parameters()):
        kinds = " of ".join(type(m).__name__ for m in list(encoder.modules())[2::-1])
        raise InputError(
            f"{setting} works block by block, but the encoder ({kinds}) repeats none that can be told from "
            f"its modules; set {setting}: false or choose another encoder"
        )
    return blocks


def shard(
    encoders: Iterable[nn.Module],
    objective: nn.Module,
    mesh: DeviceMesh,
    world_mesh: DeviceMesh,
    bf16: bool,
) -> None:
    """Shard the encoders' and the objective's parameters, and whatever the objective itself splits.

    Nothing outside these modules may hold parameters: FSDP would leave them unsynchronised, silently.

    Args:
        encoders: the towers; each of their blocks is one FSDP unit, the rest of a tower another.
        objective: an `Objective`; runs in full precision always.
        mesh: `[shard]` or `[replicate, shard]`.
        world_mesh: one dimension over all ranks, over which the objective splits its class table.
        bf16: compute the encoders in bf16, with gradients reduced in fp32 and outputs in fp32.
    """
    inner = outer = MixedPrecisionPolicy()
    if bf16:
        inner = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        outer = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    for encoder in encoders:
        for module in encoder.modules():
            if bf16 and isinstance(module, _BatchNorm):  # its statistics are fp32 and do not mix with bf16
                fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        for block in encoder_blocks(encoder):
            fully_shard(block, mesh=mesh, mp_policy=inner)
        fully_shard(encoder, mesh=mesh, mp_policy=outer)
    objective.shard(world_mesh)  # type: ignore[operator]
    if any(True for _ in objective.parameters()):
        fully_shard(objective, mesh=mesh)
        # Among its own hooks FSDP leads every input through one autograd function, which gives those that the
        # objective does not use gradients of zero. AdamW would then decay what only leads to them (FILIP's
        # projections), and one process would not. An objective's few parameters lose nothing: as those of the
        # towers, whose inputs have no gradients, they are reduced at the end of the backward.
        objective.register_forward_pre_hook(_hide_inputs, prepend=True, with_kwargs=True)
        objective.register_forward_pre_hook(_show_inputs, with_kwargs=True)


class _Hidden:
    """Inputs of a module, in what FSDP does not look into."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs


def _hide_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (_Hidden(args, kwargs),), {}


def _show_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (hidden,) = args
    return hidden.args, hidden.kwargs
