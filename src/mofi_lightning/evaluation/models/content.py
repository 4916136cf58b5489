"""Hashes of what a model is, so that nothing of another one is taken for its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


def hash_files(path: Path, about: str = "") -> str:
    """Hash of the content of a file, or of the names and contents of all files below a folder.

    Links are followed.

    Args:
        path: file or folder.
        about: what else decides what the model gives, such as its architecture.
    """
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    files = sorted(_files_below(path, frozenset())) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _files_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Files in `folder` and its folders, linked ones too but for those that lead back to one of `above`."""
    real = folder.resolve()
    if real in above:
        return
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files_below(entry, above | {real})
        elif entry.is_file():
            yield entry


def hash_state(model: nn.Module, about: str) -> str:
    """Hash of the names, shapes and numbers of a model's weights and buffers.

    Args:
        model: on whatever device.
        about: what else decides what the model gives: architecture, preprocessing.
    """
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # as bytes: NumPy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
