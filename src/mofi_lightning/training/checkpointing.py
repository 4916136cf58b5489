"""Checkpoints: where they lie, how they are written and found, and the exported model folder."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from mofi_lightning.encoders.checkpoint import is_complete
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.types import InputError

_STEP = re.compile(r"step=(\d+)\.ckpt$")


class StepCheckpoint(ModelCheckpoint):
    """Saves to `<default_root_dir>/checkpoints/step=N.ckpt`; the newest is kept, older ones are removed.

    A run that starts at step 0 where an earlier run left checkpoints is refused: the two would be mixed up.

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
        """Refuse to start anew among an earlier run's checkpoints."""
        super().on_train_start(trainer, pl_module)
        refuse_earlier_run(Path(trainer.default_root_dir), trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save when it is time, then remove what the new checkpoint supersedes."""
        started, before = time.perf_counter(), self.best_model_path
        super().on_train_batch_end(trainer, *args)
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


def refuse_earlier_run(root: Path, step: int) -> None:
    """Raise InputError if a run that starts at `step` 0 would mix its checkpoints with another run's."""
    earlier = latest_checkpoint(root) if step == 0 else None
    if earlier is not None:
        raise InputError(
            f"{earlier} is of an earlier run; go on with it (--ckpt_path last), remove it, or choose another "
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


def export_model(model: DualEncoder, folder: Path, write: bool) -> None:
    """Write the model folder; every rank must call, the one with `write` writes.

    Args:
        model: its parameters may be sharded over the ranks.
        folder: receives config.json, model.safetensors, tokenizer.json.
        write: whether this rank writes (rank 0).
    """
    weights = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if write:
            weights[name] = whole
    if write:
        model.save(folder, weights)
