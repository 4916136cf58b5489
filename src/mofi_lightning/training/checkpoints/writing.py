"""Writes checkpoint folders: whole or not at all, all ranks of one mind, while training goes on."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp

from mofi_lightning.encoders.checkpoint_format import META, REPLACED, recover
from mofi_lightning.types import InputError

Finished = Callable[[Path, str | None], None]


class CheckpointWriter:
    """Writes one checkpoint after the other, each into `<path>.partial`, renamed when it is complete.

    A process that dies at any moment leaves the checkpoints that were there before as they are, and at most
    a folder that ends in `.partial`.

    Args:
        group: gloo group of all ranks that nothing else uses, so that a write in the background does not mix
            its collectives with those of training; None on a single process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str | None] | None = None

    def begin(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path, finished: Finished | None
    ) -> None:
        """Copy everything to host memory, then write in the background; all ranks must call.

        Args:
            tensors: by their keys; DTensors are written by the ranks that hold them, others once.
            meta: plain values; those of rank 0 are written.
            path: of the checkpoint; replaced if it exists.
            finished: called on rank 0 with the path and, if it could not be written, the error.

        Raises:
            InputError: `meta` could not be read back, on all ranks.
        """
        self.wait()
        content = self.serialize(meta)
        # training changes the tensors while they are written; readers take the bytes in the order of the rows
        staged = {
            key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for key, tensor in tensors.items()
        }
        self._writing = self._thread.submit(self._write, staged, content, path, finished)

    def serialize(self, meta: Mapping[str, Any]) -> bytes:
        """The bytes of `meta` on rank 0, none elsewhere, found readable; all ranks must call.

        Raises:
            InputError: it holds more than tensors and plain values, on all ranks.
        """
        content: list[bytes] = []
        error = (
            self._agreed(lambda: content.append(_serialized(meta))) if self._first else self._agreed(_nothing)
        )
        if error is not None:
            raise InputError(error)
        return content[0] if content else b""

    @property
    def _first(self) -> bool:
        return self._group is None or dist.get_rank(self._group) == 0

    def wait(self) -> str | None:
        """Wait until nothing is being written; the error if it failed, the same on all ranks."""
        if self._writing is None:
            return None
        error, self._writing = self._writing.result(), None
        return error

    def _write(
        self, tensors: dict[str, Tensor], meta: bytes, path: Path, finished: Finished | None
    ) -> str | None:
        partial = path.with_name(f"{path.name}.partial")
        first = self._first
        error = self._agreed(_prepare, partial) if first else self._agreed(_nothing)
        error = error or self._agreed(self._write_tensors, tensors, partial)
        if error is None:
            error = self._agreed(_complete, meta, partial, path) if first else self._agreed(_nothing)
        if first:
            if error is not None:
                shutil.rmtree(partial, ignore_errors=True)
            if finished is not None:
                finished(path, error)
        return error

    def _write_tensors(self, tensors: dict[str, Tensor], partial: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            dcp.save(
                tensors,
                storage_writer=dcp.FileSystemWriter(partial),
                process_group=self._group,
                no_dist=self._group is None,
            )

    def _agreed(self, act: Callable[..., None], *arguments: Any) -> str | None:
        """Do something on this rank; the first error of any rank's."""
        error = None
        try:
            act(*arguments)
        except (Exception, dcp.CheckpointException) as found:  # torch's own is no Exception
            error = _reason(found)
        if self._group is None:
            return error
        errors: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(errors, error, group=self._group)
        return next((error for error in errors if error is not None), None)


def _nothing() -> None:
    """What the ranks do that wait for the first."""


def _prepare(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _serialized(meta: Mapping[str, Any]) -> bytes:
    """As a torch file, which readers find to hold nothing that would run code."""
    content, refused = _bytes(dict(meta))
    if refused is None:
        return content
    where, reason = _unreadable(meta, refused)
    raise InputError(
        f"{where} of the checkpoint could not be read back safely ({reason}); return plain values (numbers, "
        "strings, lists, dictionaries, tensors) from state_dict or on_save_checkpoint"
    )


def _bytes(value: Any) -> tuple[bytes, str | None]:
    """The torch file of `value`, and why a reader would refuse it."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle calls what it is given
        found = re.search(r"GLOBAL (\S+)|Can't \w+ [^\n]+|cannot pickle [^\n]+", str(error))
        return b"", (found[1] or found[0]) if found else type(error).__name__
    return buffer.getvalue(), None


def _unreadable(value: Mapping[str, Any], reason: str, depth: int = 2) -> tuple[str, str]:
    """Where in `value` is what cannot be read back, as keys, and what it is."""
    for key, inner in value.items():
        refused = _bytes(inner)[1]
        if refused is not None:
            if isinstance(inner, Mapping) and depth > 1:
                below, refused = _unreadable(inner, refused, depth - 1)
                return f"{key!r}{f', {below}' if below else ''}", refused
            return repr(key), refused
    return "", reason


def _complete(meta: bytes, partial: Path, path: Path) -> None:
    with (partial / META).open("wb") as file:
        file.write(meta)
        file.flush()
        os.fsync(file.fileno())
    _sync(partial)
    with _out_of_the_way(path):
        os.replace(partial, path)
    _sync(path.parent)


@contextlib.contextmanager
def _out_of_the_way(path: Path) -> Iterator[None]:
    """Move aside what is at `path`, which is removed after: a folder replaces no folder that has files."""
    recover(path)
    replaced = path.with_name(f"{path.name}{REPLACED}")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        os.replace(path, replaced)
    try:
        yield
    except BaseException:
        recover(path)
        raise
    if replaced.is_file():
        replaced.unlink()
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make the folder's entries last over a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """What went wrong, without torch's wrapping of all ranks' tracebacks."""
    if isinstance(error, dcp.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None or error.__context__ is not None:  # torch hides the disk's own word
        error = error.__cause__ or error.__context__ or error
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()
    return text if isinstance(text, str) else (text[0] if text else type(error).__name__)
