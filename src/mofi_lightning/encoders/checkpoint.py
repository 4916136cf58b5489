"""Reads what describes a `DualEncoder` from a saved folder or from a training checkpoint.

Only the model's part of a checkpoint is read: optimizer states and entity tables stay on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mofi_lightning.encoders import tokenizer
from mofi_lightning.encoders.checkpoint_format import (
    INDEX,
    META,
    OPTIMIZERS,
    STATE,
    check_values,
    checkpoint_at,
    is_complete,
    load_safely,
    load_tensors,
    read_index,
    read_meta,
    read_rows,
    tensor_shapes,
)
from mofi_lightning.types import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_KEY = "dual_encoder"
LABEL_SPACE = "label_space"
_MODEL, _AVERAGE = "model.", "average."

__all__ = [
    "StoredEncoder",
    "check",
    "check_resumable",
    "checkpoint_at",
    "is_complete",
    "is_model",
    "model_path",
    "read",
    "read_meta",
    "read_rows",
    "tensor_shapes",
]


class StoredEncoder(NamedTuple):
    """Configuration of plain values, `tokenizer.json`'s contents, and weights by their names in the model.

    `label_space` describes the label space, if there is one, in plain values; its weights are in `weights`.
    """

    config: Mapping[str, Any]
    tokenizer: str | None
    weights: dict[str, Tensor]
    label_space: Mapping[str, Any] | None = None


def read(path: Path) -> StoredEncoder:
    """Read a saved folder, a run's folder, a checkpoint file or a sharded checkpoint folder, onto the CPU.

    Raises:
        InputError: nothing is there, or what is there is none of these.
    """
    path = model_path(path)
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise InputError(f"model {str(path)!r} does not exist; give a saved folder or a checkpoint")
    if (path / CONFIG_FILE).is_file():
        return _read_folder(path)
    if is_complete(path):
        return _read_shards(path)
    raise InputError(
        f"folder {str(path)!r} holds no model: neither {CONFIG_FILE} nor the files of a sharded checkpoint"
    )


def model_path(path: Path) -> Path:
    """The folder or file that holds the model: a run's `model`, a folder's only checkpoint, or `path`."""
    inside = path / "model"
    return inside if (inside / CONFIG_FILE).is_file() else checkpoint_at(path)


def is_model(path: Path) -> bool:
    """Whether `read` would take `path` for a model: one of ours, not of another library."""
    path = model_path(path)
    if path.is_file() or is_complete(path):
        return True
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"image", "embed_dim"} <= config.keys()


def check(path: Path) -> None:
    """Refuse what is no checkpoint, or would run code when it is read.

    Raises:
        InputError: `path` is neither a consolidated file nor a complete checkpoint folder of `mofi fit`, or
            it holds pickled objects beyond tensors and plain values.
    """
    if not path.exists():
        raise InputError(f"checkpoint {str(path)!r} does not exist; give a .ckpt file or folder, or 'last'")
    if path.is_file():
        _description(load_safely(path), path)
        return
    if not is_complete(path):
        raise InputError(
            f"folder {str(path)!r} is no complete sharded checkpoint: it lacks {INDEX} or {META}"
        )
    _description(load_safely(path / META), path)
    check_values(path)


def check_resumable(path: Path, training: bool = True) -> None:
    """Refuse what training cannot be resumed from, or what would run code when it is read.

    Args:
        path: of the checkpoint.
        training: whether training goes on, which takes the optimizer's state, too.

    Raises:
        InputError: `path` is no complete checkpoint folder of this version's `mofi fit`.
    """
    check(path)
    if path.is_file():
        raise InputError(
            f"checkpoint {str(path)!r} is one file, which has no optimizer state: resume from the folder it "
            "was made from, or start from its weights with model.init_from"
        )
    optimizers = read_meta(path).get(OPTIMIZERS)
    if training and optimizers == []:
        raise InputError(
            f"checkpoint {str(path)!r} was saved with weights_only=True, without optimizer state: "
            "start from its weights with model.init_from"
        )
    if optimizers is None:
        raise InputError(
            f"checkpoint {str(path)!r} is of an earlier version, which this one cannot resume; start from "
            "its weights with model.init_from"
        )


def _read_folder(path: Path) -> StoredEncoder:
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        weights = load_file(path / WEIGHTS_FILE)
    except ValueError as error:
        raise InputError(f"{str(path / CONFIG_FILE)!r} is no JSON: {error}") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {str(path / WEIGHTS_FILE)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{str(path / CONFIG_FILE)!r} holds no JSON object")
    label_space = config.pop(LABEL_SPACE, None)
    if label_space is not None and not isinstance(label_space, dict):
        raise InputError(f"{str(path / CONFIG_FILE)!r}: its {LABEL_SPACE} is no JSON object")
    text = path / tokenizer.FILE_NAME
    vocabulary = text.read_text(encoding="utf-8") if text.is_file() else None
    return StoredEncoder(config, vocabulary, weights, label_space)


def _read_file(path: Path) -> StoredEncoder:
    checkpoint = load_safely(path)
    stored, prefixes = _described(checkpoint, path)
    state = {key: value for key, value in checkpoint.get("state_dict", {}).items() if _is_tensor(value)}
    stored.weights.update({name: state[key] for name, key in _keys(state, prefixes).items()})
    return stored


def _read_shards(path: Path) -> StoredEncoder:
    stored, prefixes = _described(load_safely(path / META), path)
    entries = read_index(path).state_dict_metadata
    tensors = {key.removeprefix(STATE): entry for key, entry in entries.items() if key.startswith(STATE)}
    keys = _keys(tensors, prefixes)
    wanted = {
        STATE + key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key in keys.values()
        if isinstance(entry := tensors[key], TensorStorageMetadata)
    }
    load_tensors(path, wanted)
    stored.weights.update({name: wanted[STATE + key] for name, key in keys.items() if STATE + key in wanted})
    return stored


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _keys(state: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, str]:
    """The entries of a training state that are of the model, by their names in it.

    Where there is an average of a parameter, it takes the parameter's place: it is what the run was for.
    """
    keys: dict[str, str] = {}
    for key in sorted(state, key=lambda key: key.startswith(_AVERAGE)):
        own = key.removeprefix(_AVERAGE).replace("/", ".") if key.startswith(_AVERAGE) else key
        prefix = next((prefix for prefix in prefixes if own.startswith(prefix)), None)
        if prefix is not None:
            keys[prefixes[prefix] + own.removeprefix(prefix)] = key
    return keys


def _description(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    description = checkpoint.get(CHECKPOINT_KEY)
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise InputError(
            f"checkpoint {str(path)!r} has no {CHECKPOINT_KEY!r} entry: `mofi fit` did not write it"
        )
    return description


def _described(checkpoint: dict[str, Any], path: Path) -> tuple[StoredEncoder, dict[str, str]]:
    """What is stored, without weights yet, and what their names begin with in the state and in the model."""
    description = _description(checkpoint, path)
    prefixes = {_MODEL: ""}
    label_space = description.get(LABEL_SPACE)
    if label_space is not None:
        prefixes[f"{label_space['module']}."] = f"{LABEL_SPACE}."
        label_space = label_space["config"]
    return StoredEncoder(description["config"], description.get("tokenizer"), {}, label_space), prefixes
