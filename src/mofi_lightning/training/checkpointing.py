"""Checkpoints: where they lie, how they are written and found, and the exported model folder."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.tensor import DTensor

from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.types import InputError

_STEP = re.compile(r"step=(\d+)\.ckpt$")


class StepCheckpoint(ModelCheckpoint):
    """Saves to `<default_root_dir>/checkpoints/step=N.ckpt`, newest kept, older ones removed.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        super().__init__(
            filename="{step:08d}",
            every_n_train_steps=every_n_steps,
            save_top_k=1,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the checkpoints into the run's folder."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)


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
        if (match := _STEP.search(path.name)) and (path.is_file() or _is_complete(path))
    ]
    return max(found)[1] if found else None


def _is_complete(folder: Path) -> bool:
    """Whether a sharded checkpoint was written to its end: rank 0 writes these files last, in this order."""
    return all((folder / name).is_file() for name in (".metadata", "meta.pt"))


def check_is_checkpoint(path: Path) -> None:
    """Refuse what cannot be resumed from before anything is built.

    Raises:
        InputError: `path` does not exist or is neither a checkpoint file nor a sharded checkpoint folder.
    """
    if not path.exists():
        raise InputError(f"checkpoint {str(path)!r} does not exist; give a .ckpt file or folder, or 'last'")
    if path.is_dir():
        if not _is_complete(path):
            raise InputError(
                f"folder {str(path)!r} is no complete sharded checkpoint: it lacks .metadata or meta.pt"
            )
        return
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{str(path)!r} is no checkpoint (not a file that torch.save wrote), or it is truncated"
        )
    try:
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        raise InputError(
            f"{str(path)!r} is no checkpoint that can be read safely: {error}".split("\n")[0]
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content or "dual_encoder" not in content:
        raise InputError(
            f"{str(path)!r} is no checkpoint of mofi_lightning: it lacks 'state_dict' or 'dual_encoder'"
        )


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
