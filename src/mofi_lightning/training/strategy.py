"""The multi-process strategy: FSDP2 over all ranks, optionally replicated."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.modules.batchnorm import _BatchNorm

from mofi_lightning.training.checkpoints.strategy import FolderCheckpoints
from mofi_lightning.types import InputError


class ShardedStrategy(FolderCheckpoints, ModelParallelStrategy):
    """FSDP2 (`fully_shard`) on every process; works on CPU (gloo) and GPU (nccl) alike.

    Parameters, gradients and optimizer state are split over `world / replicate` ranks and kept in `replicate`
    copies. `replicate = world` gives every rank a whole copy, which is what users of DDP want.

    Args:
        replicate: number of copies of the parameters, a divisor of the number of processes; 'world' for one a
            process, 'nodes' for one a machine, whose processes then share it (hybrid sharding).
        process_group_backend: 'nccl' or 'gloo'; chosen from the device by default.
        timeout: of collective operations.

    Raises:
        InputError: `replicate` is another word, or (when the processes start) no divisor of their number.
    """

    def __init__(
        self,
        replicate: int | Literal["world", "nodes"] = 1,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        if isinstance(replicate, str) and replicate not in ("world", "nodes"):
            raise InputError(
                f"ShardedStrategy(replicate={replicate!r}) is unknown; give a number of copies, 'world' for "
                "one a process or 'nodes' for one a machine"
            )
        self.replicate = replicate
        self._world_mesh: DeviceMesh | None = None

    @property
    def world_mesh(self) -> DeviceMesh:
        """One dimension over all ranks."""
        if self._world_mesh is None:
            raise RuntimeError("the mesh exists only after setup_environment()")
        return self._world_mesh

    @property
    def replicas(self) -> int:
        """Number of copies of the parameters."""
        named = {"world": self.world_size, "nodes": self.num_nodes}
        return named[self.replicate] if isinstance(self.replicate, str) else self.replicate

    def setup_environment(self) -> None:
        """Start the process group and lay the mesh over all ranks.

        `ModelParallelStrategy` would set the data-parallel size to the number of nodes: its own method is
        left out and only what stands above it runs.
        """
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()
        replicas = self.replicas
        if replicas < 1 or self.world_size % replicas:
            raise InputError(
                f"ShardedStrategy(replicate={self.replicate}) does not divide the {self.world_size} "
                f"processes; choose a divisor of {self.world_size}, 'world' or 'nodes'"
            )
        device = self.root_device.type
        if replicas == 1:
            self._device_mesh = init_device_mesh(device, (self.world_size,), mesh_dim_names=("shard",))
        else:
            shape = (replicas, self.world_size // replicas)
            self._device_mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
        self._world_mesh = init_device_mesh(device, (self.world_size,), mesh_dim_names=("world",))
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every rank is a data-parallel rank."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}


def refuse_what_trains_wrong(trainer: Trainer, stage: str) -> None:
    """Refuse settings of the trainer that would train something wrong without a word.

    These are strategies that leave the entity table unsynchronised, precisions that cast it or need a loss
    scale, gradients accumulated over batches (negatives would come from one of them), and a length in epochs
    (schedule and resume count steps).

    Args:
        trainer: as it was built.
        stage: of the `setup` hook: 'fit', 'validate', ...

    Raises:
        InputError: one of them is set.
    """
    require_sharded(trainer.strategy)
    if trainer.precision not in ("32-true", "64-true", "bf16-mixed"):
        raise InputError(
            f"trainer.precision {trainer.precision!r} is not supported (it would cast the entity table or "
            "need a loss scale); use 'bf16-mixed' or '32-true'"
        )
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} would change the contrastive "
            "loss; for batches larger than memory set model.encode_slices"
        )
    if stage == "fit" and trainer.max_steps < 1:
        raise InputError("training is counted in steps: set trainer.max_steps, with trainer.max_epochs: -1")


def require_sharded(strategy: Strategy | str | None) -> None:
    """Refuse strategies under which the entity table would be wrong without a word.

    Args:
        strategy: an object, a name of Lightning's, or None for none asked for.

    Raises:
        InputError: anything but `ShardedStrategy`, 'auto' or the strategy of a single process.
    """
    if strategy not in (None, "auto") and not isinstance(strategy, ShardedStrategy | SingleDeviceStrategy):
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise InputError(
            f"trainer.strategy {name!r} would train a wrong entity table; leave it out (ShardedStrategy is "
            "used) or, for whole copies of the parameters as under DDP, add "
            "--config configs/strategy/replicated.yaml (--trainer.strategy.replicate world)"
        )


def refuse_unsynchronised_statistics(module: nn.Module) -> None:
    """Refuse to shard running statistics, which are buffers: nothing synchronises them over the ranks.

    Raises:
        InputError: a BatchNorm of `module` is in training mode.
    """
    for name, child in module.named_modules():
        if isinstance(child, _BatchNorm) and child.training:
            raise InputError(
                f"{name} is a BatchNorm, whose statistics several processes would not share; freeze the "
                "encoder (model.freeze), choose one without BatchNorm, or train on one process"
            )
