"""Checkpoints: where they lie, how they are written and found, and the exported model folder."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from mofi_lightning.encoders.checkpoint import CONFIG_FILE, LABEL_SPACE, is_complete
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.types import InputError

_STEP = re.compile(r"step=(\d+)\.ckpt$")


class StepCheckpoint(ModelCheckpoint):
    """Saves to `<default_root_dir>/checkpoints/step=N.ckpt`; the newest is kept, older ones are removed.

    The last step is saved too, so that a finished run can be continued with more steps. A run that starts at
    step 0 where an earlier run left checkpoints or a model is refused: the two would be mixed up.

    Args:
        every_n_steps: optimizer steps between two checkpoints.

    Attributes:
        seconds: spent saving, in this process.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        super().__init__(
            filename="{step:08d}",
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the checkpoints into the run's folder."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to start anew in an earlier run's folder."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            refuse_earlier_run(Path(trainer.default_root_dir))

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save when it is time and at the last step, then remove what the new checkpoint supersedes."""
        started, before = time.perf_counter(), self.best_model_path
        super().on_train_batch_end(trainer, *args)
        is_last = trainer.global_step == trainer.max_steps
        if is_last and not self._should_skip_saving_checkpoint(trainer):  # skips what was just saved
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if self.best_model_path != before:
            if trainer.is_global_zero:
                self._remove_superseded(Path(self.best_model_path))
            self.seconds += time.perf_counter() - started

    def _remove_superseded(self, newest: Path) -> None:
        # Lightning itself leaves the checkpoint that the run was resumed from, and what a kill left behind
        for path in newest.parent.glob("step=*.ckpt*"):
            if path == newest or path.name > newest.name:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def refuse_earlier_run(root: Path) -> None:
    """Raise InputError if a run from step 0 would be mixed up with another run's checkpoints or model."""
    earlier = latest_checkpoint(root)
    if earlier is not None:
        raise InputError(
            f"{earlier} is of an earlier run; go on with it (--ckpt_path last), remove it, or choose another "
            "trainer.default_root_dir"
        )
    model = root / "model"
    if (model / CONFIG_FILE).is_file():
        raise InputError(
            f"{model} is of an earlier run, whose checkpoints are gone; remove it, or choose another "
            "trainer.default_root_dir"
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a killed process never leaves half a checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to `path`, whole or not at all."""
        partial = f"{path}.partial"
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)


def latest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint with the most steps under `root/checkpoints`; None if there is none."""
    found = [
        (int(match[1]), path)
        for path in (root / "checkpoints").glob("*.ckpt")
        if (match := _STEP.search(path.name)) and (path.is_file() or is_complete(path))
    ]
    return max(found)[1] if found else None


def step_of(checkpoint: Path) -> int:
    """The number of steps in the name of a checkpoint that `latest_checkpoint` found."""
    match = _STEP.search(checkpoint.name)
    assert match is not None
    return int(match[1])


def is_exported(root: Path, checkpoint: Path) -> bool:
    """Whether `root/model` is complete and was written after `checkpoint`."""
    config = root / "model" / CONFIG_FILE
    return config.is_file() and config.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


@contextmanager
def explain_mismatch(checkpoint: Path | None, module: LightningModule) -> Iterator[None]:
    """Name the parameter where `checkpoint` turns out to be of another model than `module`.

    Args:
        checkpoint: that is read within; `encoders.checkpoint.check` has found it safe to read.
        module: that is restored.

    Raises:
        InputError: names or shapes of parameters or buffers differ.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, dcp.CheckpointException) as error:  # torch's own is no Exception
        try:
            differs = None if checkpoint is None else _difference(checkpoint, module)
        except OSError:  # a newer checkpoint has taken its place: the error is of the training itself
            differs = None
        if differs is None:
            raise
        raise InputError(
            f"checkpoint {checkpoint} is of another model: {differs}; use its own configuration"
        ) from error


def _difference(checkpoint: Path, module: LightningModule) -> str | None:
    """The first parameter or buffer whose shape differs or, where none does, that only one of them has."""
    saved = _saved_shapes(checkpoint)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in own:
        if name in saved and own[name] != saved[name]:
            return f"{name} is {list(saved[name])} there and {list(own[name])} here"
    for name in own:
        if name not in saved:
            return f"it has no {name} {list(own[name])}"
    for name in saved:
        if name not in own:
            return f"its {name} {list(saved[name])} is not in this one"
    return None


def _saved_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    if checkpoint.is_dir():
        entries = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        return {
            name.removeprefix("state_dict."): tuple(entry.size)
            for name, entry in entries.items()
            if name.startswith("state_dict.") and isinstance(entry, TensorStorageMetadata)
        }
    saved = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    return {name: tuple(tensor.shape) for name, tensor in saved["state_dict"].items()}


def export_model(model: DualEncoder, label_space: LabelSpace | None, folder: Path, write: bool) -> None:
    """Write the model folder; every rank must call, the one with `write` writes.

    Args:
        model: its parameters may be sharded over the ranks.
        label_space: of the objective; likewise.
        folder: receives config.json, model.safetensors, tokenizer.json.
        write: whether this rank writes (rank 0).
    """
    state = model.state_dict()
    if label_space is not None:
        state |= label_space.state_dict(prefix=f"{LABEL_SPACE}.")
    weights = {}
    for name, value in state.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if write:
            weights[name] = whole
    if write:
        model.save(folder, weights, None if label_space is None else label_space.config)
