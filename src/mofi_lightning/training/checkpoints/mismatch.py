"""What is said of a checkpoint that does not fit the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import LightningModule
from torch.distributed import checkpoint as dcp

from mofi_lightning.encoders.checkpoint import tensor_shapes
from mofi_lightning.types import InputError


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
        except InputError:  # a newer checkpoint has taken its place: the error is of the training itself
            differs = None
        if differs is None:
            raise
        raise InputError(
            f"checkpoint {checkpoint} is of another model: {differs}; use its own configuration"
        ) from error


def _difference(checkpoint: Path, module: LightningModule) -> str | None:
    """The first parameter or buffer whose shape differs or, where none does, that only one of them has."""
    saved = tensor_shapes(checkpoint)
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in own:
        if name in saved and own[name] != saved[name]:
            return f"{name} is {list(saved[name])} there and {list(own[name])} here"
    averages = [{n for n in names if n.startswith("average.")} for names in (saved, own)]
    if averages[0] and not averages[1]:
        return "it was written with model.ema_decay, which this run leaves out"
    if averages[1] and not averages[0]:
        return "it was written without model.ema_decay, which this run has"
    for name in own:
        if name not in saved:
            return f"it has no {name} {list(own[name])}"
    for name in saved:
        if name not in own:
            return f"its {name} {list(saved[name])} is not in this one"
    return None
