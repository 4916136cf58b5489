"""The files of a training checkpoint, read without trusting them and without reading all of them.

`mofi fit` writes a folder: the tensors of all ranks in torch's DCP format, and `meta.pt`, which comes last
and holds the rest in plain values. `mofi checkpoint consolidate` makes one torch file of it. Nothing is
unpickled except through torch's weights-only loader and, for a folder's index, an allow-list.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)

from mofi_lightning.types import InputError

INDEX, META = ".metadata", "meta.pt"
REPLACED = ".replaced.partial"  # ending of a checkpoint whose place a new one is about to take
STATE = "state_dict."
OPTIMIZERS = "optimizers"  # in META, what of their state is no tensor
_PIECE_BYTES = 2**26  # of a tensor that is read piece by piece


def is_complete(folder: Path) -> bool:
    """Whether `folder` is a sharded checkpoint that was written to its end."""
    return folder.suffix != ".partial" and all((folder / name).is_file() for name in (INDEX, META))


def recover(path: Path) -> None:
    """Put the checkpoint `path` back if the process that was replacing it died before it had done so."""
    replaced = path.parent / f"{path.name}{REPLACED}"
    if not path.exists() and replaced.exists():
        with contextlib.suppress(OSError):  # another process has done it, or the disk is read only
            os.replace(replaced, path)


def checkpoint_at(path: Path) -> Path:
    """`path`, or the only checkpoint in it, as in `checkpoints/best`."""
    recover(path)
    for replaced in path.glob(f"step=*.ckpt{REPLACED}"):
        recover(replaced.with_name(replaced.name.removesuffix(REPLACED)))
    inside = [found for found in path.glob("step=*.ckpt") if is_complete(found)]
    return inside[0] if len(inside) == 1 else path


def read_meta(path: Path) -> dict[str, Any]:
    """All of a checkpoint that is neither weights nor optimizer state, in plain values.

    Args:
        path: a checkpoint folder or a consolidated file.

    Raises:
        InputError: it cannot be read safely.
    """
    loaded = load_safely(path / META if path.is_dir() else path)
    return {key: value for key, value in loaded.items() if key not in ("state_dict", "optimizer_states")}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the training state's tensors by their names, such as `model.image.projection.weight`.

    Args:
        path: a checkpoint folder or a consolidated file.

    Raises:
        InputError: it cannot be read safely.
    """
    if path.is_file():
        state = load_safely(path).get("state_dict", {})
        return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
    return {
        name.removeprefix(STATE): tuple(entry.size)
        for name, entry in read_index(path).state_dict_metadata.items()
        if name.startswith(STATE) and isinstance(entry, TensorStorageMetadata)
    }


def read_rows(path: Path, name: str) -> Iterator[tuple[int, Tensor]]:
    """The rows of one tensor of the training state in their order, piece by piece, never all at once.

    Args:
        path: a checkpoint folder or a consolidated file.
        name: in the training state, such as `objective.objectives.entity.table`.

    Yields:
        The number of the first row, and some rows from it on, on the CPU.

    Raises:
        InputError: there is no such tensor, or it cannot be read safely.
    """
    pieces = _rows_of_file(path, name) if path.is_file() else _rows_of_folder(path, name)
    for first, rows in pieces:
        step = max(1, _PIECE_BYTES * len(rows) // max(1, rows.nbytes))
        for start in range(0, len(rows), step):
            yield first + start, rows[start : start + step].clone()


def _rows_of_file(path: Path, name: str) -> Iterator[tuple[int, Tensor]]:
    tensor = load_safely(path).get("state_dict", {}).get(name)
    if not isinstance(tensor, Tensor):
        raise InputError(f"checkpoint {str(path)!r} has no tensor {name!r}")
    yield 0, tensor


def _rows_of_folder(path: Path, name: str) -> Iterator[tuple[int, Tensor]]:
    index = read_index(path)
    entry = index.state_dict_metadata.get(STATE + name)
    if not isinstance(entry, TensorStorageMetadata):
        raise InputError(f"checkpoint {str(path)!r} has no tensor {name!r}")
    rows = 0
    for chunk in sorted((c for c in entry.chunks if all(c.sizes)), key=lambda chunk: chunk.offsets[0]):
        if chunk.offsets[0] != rows or tuple(chunk.sizes[1:]) != tuple(entry.size[1:]):
            raise InputError(f"tensor {name!r} of checkpoint {str(path)!r} is not split by rows")
        place = (index.storage_data or {}).get(MetadataIndex(STATE + name, chunk.offsets))
        yield rows, _mapped(path, name, place, chunk.sizes, entry.properties.dtype)
        rows += chunk.sizes[0]
    if rows != entry.size[0]:
        raise InputError(f"checkpoint {str(path)!r} is damaged: rows of {name!r} are missing")


def _mapped(path: Path, name: str, place: Any, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """One rank's part of a tensor as a memory map: a torch file within a file, whose data are not packed."""
    damaged = InputError(f"checkpoint {str(path)!r} is damaged: {name!r} is unreadable")
    try:
        file = path / place.relative_path
        with open(file, "rb") as stream:
            stream.seek(place.offset)
            window = _Window(stream, place.offset, place.length)
            header = zipfile.ZipFile(window)
            window.seek(0)
            with torch.serialization.skip_data():
                stride = torch.load(cast(IO[bytes], window), map_location="cpu", weights_only=True).stride()
            (record,) = (r for r in header.infolist() if r.filename.endswith("/data/0"))
            stream.seek(place.offset + record.header_offset + 26)  # lengths of the two fields before the data
            lengths = np.frombuffer(stream.read(4), dtype="<u2")
        begin = place.offset + record.header_offset + 30 + int(lengths.sum())
        bytes_ = math.prod(size) * dtype.itemsize
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != bytes_:
            raise damaged
        values = np.memmap(file, mode="c", dtype=np.uint8, offset=begin, shape=(bytes_,))
        # earlier versions wrote the values in the order that they had in memory, such as channels last
        return torch.from_numpy(values).view(dtype).as_strided(size, stride)
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise damaged from error


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.BufferedReader, begin: int, length: int) -> None:
        self._file, self._begin, self._length = file, begin, length
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._begin + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def load_safely(path: Path) -> dict[str, Any]:
    """The dictionary in the torch file `path`, mapped into memory.

    Raises:
        InputError: it holds none, or more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of garbage
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # garbage fails in torch in many ways
        raise InputError(f"{str(path)!r} is no checkpoint that can be read safely") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{str(path)!r} is no training checkpoint but a {type(loaded).__name__}")
    return loaded


def read_index(path: Path) -> Metadata:
    """The index of the checkpoint folder `path`: which tensors it has and where their parts lie.

    Raises:
        InputError: it cannot be read safely.
    """
    try:
        return SafeReader(path).read_metadata()
    except Exception as error:  # garbage fails in pickle in many ways
        raise InputError(f"sharded checkpoint {str(path)!r} cannot be read safely") from error


def check_values(path: Path) -> None:
    """Refuse a checkpoint folder whose entries that are no tensors would run code when they are read.

    Raises:
        InputError: some would, or cannot be read.
    """
    index = read_index(path)
    try:
        for entry, stored in (index.storage_data or {}).items():
            if isinstance(index.state_dict_metadata[entry.fqn], BytesStorageMetadata):
                with open(path / stored.relative_path, "rb") as file:
                    file.seek(stored.offset)
                    torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)
    except Exception as error:
        raise InputError(f"sharded checkpoint {str(path)!r} cannot be read safely") from error


def load_tensors(path: Path, wanted: dict[str, Any]) -> None:
    """Fill the tensors of `wanted`, by their keys in the checkpoint folder `path`, in one process.

    Raises:
        InputError: a file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            dcp.load(wanted, storage_reader=SafeReader(path), no_dist=True)
    except (Exception, dcp.CheckpointException) as error:  # torch fails in many ways; its own is no Exception
        raise InputError(
            f"sharded checkpoint {str(path)!r} is damaged: its index or a shard is unreadable"
        ) from error


class SafeReader(dcp.FileSystemReader):
    """Reads the index, which torch pickles, through an allow-list of the classes that an index is made of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index."""
        with open(Path(self.checkpoint_id) / INDEX, "rb") as file:
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
