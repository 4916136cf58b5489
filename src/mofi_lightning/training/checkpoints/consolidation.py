"""One torch file made of a checkpoint's folder, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mofi_lightning.encoders.checkpoint_format import STATE, load_tensors, read_index, read_meta, read_rows
from mofi_lightning.progress import track
from mofi_lightning.training.checkpoints.inspection import find
from mofi_lightning.types import InputError

# what only a run that goes on would need
_OF_TRAINING = ("loops", "callbacks", "lr_schedulers", "optimizers")
_MIB = 2**20


def write_one_file(path: Path, output: Path) -> None:
    """Write weights, buffers and description of the checkpoint folder `path` to the file `output`.

    The file is laid out first and then filled piece by piece: no tensor is ever held whole.

    Args:
        path: a checkpoint's folder, or that of a run.
        output: must not exist; it appears when it is complete.

    Raises:
        InputError: `output` exists, or `path` is no complete checkpoint folder.
    """
    if output.exists():
        raise InputError(f"{output} exists; remove it or choose another output")
    found = find(path)
    if found.is_file():
        raise InputError(f"{found} is one file already; copy it")
    state = {
        key.removeprefix(STATE): torch.empty(
            entry.size, dtype=entry.properties.dtype
        )  # memory is not touched
        for key, entry in read_index(found).state_dict_metadata.items()
        if key.startswith(STATE) and isinstance(entry, TensorStorageMetadata)
    }
    content = {key: value for key, value in read_meta(found).items() if key not in _OF_TRAINING}
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    try:
        with torch.serialization.skip_data():
            torch.save(content | {"state_dict": state}, partial)
        _fill(partial, found, state)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    step = content.get("global_step")
    print(f"{output}: step {step} of {found}, {output.stat().st_size / 1e6:,.1f} MB")


def _fill(file: Path, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the values of the checkpoint `folder` to their places in `file`."""
    with FakeTensorMode():
        laid_out = torch.load(file, weights_only=True)["state_dict"]
    places = {name: tensor.untyped_storage()._checkpoint_offset for name, tensor in laid_out.items()}
    total = sum(tensor.nbytes for tensor in state.values())
    with file.open("r+b") as stream:
        for _ in track(_copy(folder, state, places, stream), "consolidating", total // _MIB):
            pass
        stream.flush()
        os.fsync(stream.fileno())


def _copy(
    folder: Path, state: Mapping[str, Tensor], places: Mapping[str, int], stream: BinaryIO
) -> Iterator[None]:
    """Copy all values; yields once a mebibyte."""
    copied = 0
    for name, tensor in state.items():
        stream.seek(places[name])
        for piece in _pieces(folder, name, tensor):
            stream.write(piece.reshape(-1).view(torch.uint8).numpy().data)
            before, copied = copied, copied + piece.nbytes
            yield from [None] * (copied // _MIB - before // _MIB)


def _pieces(folder: Path, name: str, tensor: Tensor) -> Iterator[Tensor]:
    if tensor.ndim:
        yield from (rows for _, rows in read_rows(folder, name))
    else:
        whole = {STATE + name: torch.empty_like(tensor)}
        load_tensors(folder, whole)
        yield whole[STATE + name]
