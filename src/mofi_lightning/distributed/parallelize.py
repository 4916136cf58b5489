"""The one place that lays parallelism over the modules: encoders and objective become FSDP2 units."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm


def parallelize(
    encoders: Iterable[nn.Module],
    objective: nn.Module,
    mesh: DeviceMesh,
    world_mesh: DeviceMesh,
    bf16: bool,
) -> None:
    """Shard the encoders' and the objective's parameters, and whatever the objective itself splits.

    Nothing outside these modules may hold parameters: FSDP would leave them unsynchronised, silently.

    Args:
        encoders: the towers, each one FSDP unit.
        objective: an `Objective`; runs in full precision always.
        mesh: `[shard]` or `[replicate, shard]`.
        world_mesh: one dimension over all ranks, over which the objective splits its class table.
        bf16: compute the encoders in bf16, with gradients reduced in fp32 and outputs in fp32.
    """
    policy = MixedPrecisionPolicy()
    if bf16:
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    for encoder in encoders:
        for module in encoder.modules():
            if bf16 and isinstance(module, _BatchNorm):  # its statistics are fp32 and do not mix with bf16
                fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        fully_shard(encoder, mesh=mesh, mp_policy=policy)
    objective.shard(world_mesh)  # type: ignore[operator]
    if any(True for _ in objective.parameters()):
        fully_shard(objective, mesh=mesh)
