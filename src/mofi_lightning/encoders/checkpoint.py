"""Reads what describes a `DualEncoder` from a saved folder or from a training checkpoint.

Only the model's part of a checkpoint is read: optimizer states and entity tables stay on disk. Nothing is
unpickled except through torch's weights-only loader and, for a sharded checkpoint's index, an allow-list.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    StorageMeta,
    TensorStorageMetadata,
)

from mofi_lightning.encoders import tokenizer
from mofi_lightning.types import InputError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_KEY = "dual_encoder"
LABEL_SPACE = "label_space"
_STATE_PREFIX = "model."
_SHARDS_INDEX, _SHARDS_REST = ".metadata", "meta.pt"  # the layout of Lightning's ModelParallelStrategy


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
    """The folder or file that holds the model: of a run's folder its `model`, else `path` itself."""
    inside = path / "model"
    return inside if (inside / CONFIG_FILE).is_file() else path


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
    """Refuse what training cannot be resumed from, or what would run code when it is read.

    Raises:
        InputError: `path` is neither a checkpoint file nor a complete sharded checkpoint of `mofi fit`, or it
            holds pickled objects beyond tensors and plain values.
    """
    if not path.exists():
        raise InputError(f"checkpoint {str(path)!r} does not exist; give a .ckpt file or folder, or 'last'")
    if path.is_file():
        _description(_load_safely(path), path)
        return
    if not is_complete(path):
        raise InputError(
            f"folder {str(path)!r} is no complete sharded checkpoint: "
            f"it lacks {_SHARDS_INDEX} or {_SHARDS_REST}"
        )
    _description(_load_safely(path / _SHARDS_REST), path)
    try:
        metadata = _SafeReader(path).read_metadata()
        for index, stored in (metadata.storage_data or {}).items():
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                with open(path / stored.relative_path, "rb") as file:
                    file.seek(stored.offset)
                    torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)
    except Exception as error:  # garbage fails in many ways
        raise InputError(f"sharded checkpoint {str(path)!r} cannot be read safely") from error


def is_complete(folder: Path) -> bool:
    """Whether a sharded checkpoint was written to its end: these two files come last, in this order."""
    return all((folder / name).is_file() for name in (_SHARDS_INDEX, _SHARDS_REST))


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
    checkpoint = _load_safely(path)
    stored, prefixes = _described(checkpoint, path)
    for key, tensor in checkpoint.get("state_dict", {}).items():
        if name := _name_in_model(key, prefixes):
            stored.weights[name] = tensor
    return stored


def _read_shards(path: Path) -> StoredEncoder:
    stored, prefixes = _described(_load_safely(path / _SHARDS_REST), path)
    try:
        reader = _SafeReader(path)
        wanted = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
            and _name_in_model(key.removeprefix("state_dict."), prefixes)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            dcp.load(wanted, storage_reader=reader, no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # torch fails in many ways; its own is no Exception
        raise InputError(
            f"sharded checkpoint {str(path)!r} is damaged: its index or a shard is unreadable"
        ) from error
    for key, tensor in wanted.items():
        stored.weights[_name_in_model(key.removeprefix("state_dict."), prefixes)] = tensor
    return stored


def _name_in_model(key: str, prefixes: Mapping[str, str]) -> str:
    """The name in the model of a training state's entry; empty if it is not of the model."""
    found = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
    return "" if found is None else prefixes[found] + key.removeprefix(found)


def _load_safely(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # garbage fails in torch in many ways
        raise InputError(f"{str(path)!r} is no checkpoint that can be read safely") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{str(path)!r} is no training checkpoint but a {type(loaded).__name__}")
    return loaded


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
    prefixes = {_STATE_PREFIX: ""}
    label_space = description.get(LABEL_SPACE)
    if label_space is not None:
        prefixes[f"{label_space['module']}."] = f"{LABEL_SPACE}."
        label_space = label_space["config"]
    return StoredEncoder(description["config"], description.get("tokenizer"), {}, label_space), prefixes


class _SafeReader(dcp.FileSystemReader):
    """Reads the index, which torch pickles, through an allow-list of the classes that an index is made of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.checkpoint_id) / _SHARDS_INDEX, "rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    _ALLOWED = frozenset(
        {
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "BytesStorageMetadata",
                    "ChunkStorageMetadata",
                    "Metadata",
                    "MetadataIndex",
                    "StorageMeta",
                    "TensorProperties",
                    "TensorStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                )
            ),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
            ("pathlib", "PosixPath"),
            ("pathlib", "WindowsPath"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint's index")
