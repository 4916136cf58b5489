"""Checkpoints as folders that any number of processes reads, whichever number wrote them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mofi_lightning.encoders.checkpoint import check_resumable
from mofi_lightning.encoders.checkpoint_format import (
    OPTIMIZERS,
    STATE,
    SafeReader,
    load_tensors,
    read_index,
    read_meta,
)
from mofi_lightning.training.checkpoints.writing import CheckpointWriter, Finished
from mofi_lightning.types import InputError

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Background:
    """Given as `storage_options`, it makes `Trainer.save_checkpoint` write in the background.

    Attributes:
        finished: called on rank 0 with the path and, if it could not be written, the error.
    """

    finished: Finished | None = None


class FolderCheckpoints(Strategy):
    """The part of a strategy that saves and restores; tensors go by their names, DTensors by their shards.

    Parameters and buffers are `state_dict.<name>`, the state of optimizer n `optimizer_n.state.<name>.<key>`.
    The rest of Lightning's checkpoint, and the optimizers' groups, are in `meta.pt`, as rank 0 has them.
    """

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Tensors are read into what is built, placed and sharded."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """`load_checkpoint` restores the optimizers."""
        return False

    @property
    def processes(self) -> int:
        """Number of processes that hold the tensors together."""
        return int(getattr(self, "world_size", 1))

    def finish_saving(self) -> str | None:
        """Wait until nothing is being written; the error if it failed, the same on all ranks."""
        # a rank that fails alone must not make the writer, which all ranks make together
        return self._writer.wait() if "_writer" in vars(self) else None

    @cached_property
    def _writer(self) -> CheckpointWriter:
        return CheckpointWriter(self._group)

    @cached_property
    def _group(self) -> dist.ProcessGroup | None:
        # training's own collectives may run while a checkpoint is written
        return dist.new_group(backend="gloo") if self.processes > 1 else None  # type: ignore[return-value]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Parameters and buffers, each rank's own shards."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State by name of the parameter, and the groups.

        Raises:
            InputError: the state is split otherwise than the parameters are.
        """
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        names = self._names()
        state = {names[parameter]: dict(values) for parameter, values in inner.state.items()}
        for parameter, values in inner.state.items():
            for key, value in values.items():
                if isinstance(value, DTensor) and value.shape != parameter.shape:
                    raise InputError(
                        f"optimizer {type(inner).__name__} keeps a {key!r} of another shape than the "
                        "parameter's, which several processes cannot save; use another, or one process"
                    )
        return {"class": type(inner).__name__, "state": state, "groups": self._groups(inner)}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Save a folder, at once or, with `Background` as `storage_options`, while training goes on.

        Raises:
            InputError: it could not be written, on all ranks.
        """
        path = Path(self.broadcast(str(filepath)))
        tensors, meta = _split(checkpoint)
        if isinstance(storage_options, Background):
            self._writer.begin(tensors, meta, path, storage_options.finished)
            return
        self._writer.begin(tensors, meta, path, None)
        error = self._writer.wait()
        if error is not None:
            raise InputError(f"checkpoint {path} could not be written: {error}")

    def check_savable(self, checkpoint: dict[str, Any]) -> None:
        """Find out, without saving it, whether what is no tensor could be read back; all ranks must call.

        Raises:
            InputError: it could not, on all ranks.
        """
        self._writer.serialize(_split(checkpoint)[1])

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a folder into model and optimizers, and return the rest, which is plain values.

        Raises:
            InputError: it is no complete checkpoint folder, or of another run.
            RuntimeError: it is of another model.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        check_resumable(path, training=bool(self.optimizers))
        module = self.lightning_module
        assert module is not None
        meta = read_meta(path)
        module.on_load_checkpoint(meta)  # what it refuses by name is no matter of shapes
        wanted: dict[str, Any] = {STATE + name: value for name, value in module.state_dict().items()}
        stored = read_index(path).state_dict_metadata
        saved = {key: entry for key, entry in stored.items() if key.startswith(STATE)}
        differing = saved.keys() ^ wanted.keys() or {
            key for key, entry in saved.items() if getattr(entry, "size", None) != wanted[key].shape
        }
        if differing:
            raise RuntimeError(f"checkpoint {path} is of another model: {min(differing)} differs")
        states_of = [
            self._wanted_state(optimizer, f"optimizer_{number}.state.", stored)
            for number, optimizer in enumerate(self.optimizers)
        ]
        for state in states_of:
            wanted |= {key: value for key, (_, _, value) in state.items()}
        self._load(path, wanted)
        if self.optimizers:
            for optimizer, state, rest in zip(self.optimizers, states_of, meta[OPTIMIZERS], strict=True):
                if rest["class"] != type(optimizer).__name__:
                    raise InputError(
                        f"checkpoint {path} was written with optimizer {rest['class']}, this run has "
                        f"{type(optimizer).__name__}; go on with the same, or start from its weights with "
                        "model.init_from"
                    )
                self._restore(optimizer, state, rest)
        return meta

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing is left to do after `load_checkpoint`."""

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Nothing is left to do after `load_checkpoint`."""

    def teardown(self) -> None:
        """Let a write that has begun come to its end."""
        self.finish_saving()
        super().teardown()

    def _load(self, path: Path, wanted: dict[str, Any]) -> None:
        if self._group is None:
            load_tensors(path, wanted)
        else:
            dcp.load(wanted, storage_reader=SafeReader(path), process_group=self._group)

    def _names(self) -> dict[Tensor, str]:
        assert self.lightning_module is not None
        return {parameter: name for name, parameter in self.lightning_module.named_parameters()}

    def _groups(self, optimizer: Optimizer) -> Groups:
        names = self._names()
        return [
            copy.deepcopy({k: v for k, v in group.items() if k != "params"})
            | {"params": [names[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]

    def _wanted_state(
        self, optimizer: Optimizer, prefix: str, stored: Mapping[str, Any]
    ) -> dict[str, tuple[Tensor, str, Tensor]]:
        """Parameter, key and room for what is stored of the optimizer's state, by its key there."""
        wanted = {}
        parameters = {name: parameter for parameter, name in self._names().items()}
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for entry, stored_as in stored.items():
            if not entry.startswith(prefix) or not isinstance(stored_as, TensorStorageMetadata):
                continue
            name, _, key = entry.removeprefix(prefix).rpartition(".")
            parameter = parameters.get(name)
            if parameter is None or parameter not in own:
                continue
            dtype = stored_as.properties.dtype
            if stored_as.size == parameter.shape:
                room = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            else:
                room = torch.empty(stored_as.size, dtype=dtype)
            wanted[entry] = (parameter, key, room)
        return wanted

    def _restore(
        self,
        optimizer: Optimizer,
        state: Mapping[str, tuple[Tensor, str, Tensor]],
        meta: Mapping[str, Any],
    ) -> None:
        """Give the optimizer its state, and its groups those of the checkpoint that have their parameters."""
        saved = {name: group for group in meta["groups"] for name in group["params"]}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = {parameter: number for number, parameter in enumerate(parameters)}
        values: dict[int, dict[str, Any]] = {}
        for parameter, key, value in state.values():
            values.setdefault(numbers[parameter], {})[key] = value
        names = self._names()
        for parameter, number in numbers.items():
            if plain := meta["values"].get(names[parameter]):
                values.setdefault(number, {}).update(plain)
        groups = []
        for group in optimizer.param_groups:
            members = group["params"]
            found = saved.get(names[members[0]], {}) if members else {}
            groups.append({**group, **found, "params": [numbers[parameter] for parameter in members]})
        optimizer.load_state_dict({"state": values, "param_groups": groups})


def _split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of Lightning's checkpoint by their keys in the folder, and what belongs into `meta.pt`."""
    meta = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")}
    tensors = {STATE + name: value for name, value in checkpoint["state_dict"].items()}
    meta[OPTIMIZERS] = []
    for number, optimizer in enumerate(checkpoint.get("optimizer_states", [])):
        values: dict[str, dict[str, Any]] = {}
        for name, state in optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer_{number}.state.{name}.{key}"] = value
                else:
                    values.setdefault(name, {})[key] = value
        meta[OPTIMIZERS].append(
            {"class": optimizer["class"], "groups": optimizer["groups"], "values": values}
        )
    return tensors, meta
