"""The meshes of the strategy, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from tests.training.runs import module, trainer

from mofi_lightning.distributed import rank
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import ShardedStrategy
from mofi_lightning.training.strategy import refuse_what_trains_wrong, require_sharded
from mofi_lightning.types import InputError


def mesh_of_a_run(
    root: str, replicate: Any, nodes: int, devices: int
) -> tuple[list[Any], tuple[str, ...], int]:
    """Ranks of the mesh, names of its dimensions, and the number of copies, after one step."""
    os.environ.update(NODE_RANK=str(rank() // devices), LOCAL_RANK=str(rank() % devices))
    try:
        run = trainer(Path(root), 1, replicate, num_nodes=nodes, devices=devices)
        run.fit(module(), datamodule=SyntheticDataModule(rows=24, num_entities=101))
        strategy = run.strategy
        assert isinstance(strategy, ShardedStrategy) and strategy.world_mesh.size() == nodes * devices
        mesh = strategy.device_mesh
        return mesh.mesh.tolist(), mesh.mesh_dim_names, strategy.replicas
    finally:
        del os.environ["NODE_RANK"]


@pytest.mark.parametrize(
    "replicate, nodes, devices, expected",
    [
        (1, 1, 2, ([0, 1], ("shard",), 1)),
        (2, 1, 4, ([[0, 1], [2, 3]], ("replicate", "shard"), 2)),
        ("world", 1, 2, ([[0], [1]], ("replicate", "shard"), 2)),
        ("nodes", 2, 2, ([[0, 1], [2, 3]], ("replicate", "shard"), 2)),  # a machine holds neighbouring ranks
        ("nodes", 1, 2, ([0, 1], ("shard",), 1)),
    ],
)
def test_the_mesh_has_a_row_for_each_copy(pool, tmp_path, replicate, nodes, devices, expected):
    found = pool(nodes * devices, mesh_of_a_run, str(tmp_path), replicate, nodes, devices)
    assert found == [expected] * (nodes * devices)


@pytest.mark.parametrize("replicate", [0, 4])
def test_a_number_of_copies_that_does_not_divide_the_processes_is_refused(pool, tmp_path, replicate):
    with pytest.raises(
        RuntimeError, match=rf"replicate={replicate}\) does not divide the 2 processes; choose a"
    ):
        pool(2, mesh_of_a_run, str(tmp_path), replicate, 1, 2)


def test_an_unknown_word_for_the_copies_is_refused():
    with pytest.raises(InputError, match=r"replicate='node'.*'nodes' for one a machine"):
        ShardedStrategy("node")  # type: ignore[arg-type]


def test_other_strategies_of_several_processes_are_refused_by_name():
    for strategy, name in ((DDPStrategy(), "DDPStrategy"), ("fsdp", "fsdp"), ("deepspeed", "deepspeed")):
        with pytest.raises(InputError, match=f"'{name}' would train a wrong entity table.*replicate"):
            require_sharded(strategy)
    for allowed in (None, "auto", ShardedStrategy(), SingleDeviceStrategy("cpu")):
        require_sharded(allowed)


@pytest.mark.parametrize(
    "setting, way_out",
    [
        ({"precision": "bf16-true"}, "bf16-true.* use 'bf16-mixed'"),
        ({"precision": "16-true"}, "16-true.* use 'bf16-mixed'"),
        ({"accumulate_grad_batches": 2}, "model.encode_slices"),
        ({"max_steps": -1, "max_epochs": 1}, "set trainer.max_steps"),
    ],
)
def test_settings_that_would_train_something_wrong_are_refused(setting, way_out):
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_steps": 1, "logger": False, **setting}
    with pytest.raises(InputError, match=way_out):
        refuse_what_trains_wrong(Trainer(enable_checkpointing=False, **options), "fit")


def test_validation_needs_no_number_of_steps():
    bare = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    refuse_what_trains_wrong(bare, "validate")
