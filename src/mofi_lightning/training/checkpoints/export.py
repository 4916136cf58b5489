"""The model folder that `mofi fit` leaves behind."""

from __future__ import annotations

from pathlib import Path

from torch.distributed.tensor import DTensor

from mofi_lightning.encoders.checkpoint import LABEL_SPACE
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.encoders.label_space import LabelSpace


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
