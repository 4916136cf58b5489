"""Files that processes share: locked by the kernel, so that a killed process holds nothing.

A file NAME.part is a download, its lock and its claim on room in one, so nothing is left of them.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from weakref import WeakSet

from mofi_lightning.types import InputError

WAY_OUT = "set data.cache.folder to a local disk with room"
_TOUCH = 10.0  # seconds between marks of use

_held: WeakSet[FileIO] = WeakSet()


def _give_up_inherited_locks() -> None:
    """A fork shares the locks of its parent, and would keep them when the parent is done or killed."""
    for file in list(_held):
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_give_up_inherited_locks)


def lock(path: Path, create: bool = True, shared: bool = False, wait: bool = True) -> FileIO | None:
    """The file, locked; None if it does not exist or, without `wait`, another holds it."""
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a+" if create else "r" if shared else "r+")
        _held.add(file)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            unlock(file)
            raise
    except BlockingIOError:
        return None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not create:
            return None
        raise InputError(f"the cache cannot use {path} ({error.strerror}): {WAY_OUT}") from error
    return file


def unlock(file: FileIO) -> None:
    """Close a locked file."""
    _held.discard(file)
    with suppress(
        OSError, ValueError
    ):  # a fork may have the file without knowing of it: closing is not enough
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def is_same(path: Path, file: FileIO) -> bool:
    """Whether `path` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def claimed(target: Path, wait: bool = True) -> Iterator[Path | None]:
    """The file to download `target` into, for this caller alone; None if another has fetched it meanwhile.

    Without `wait`, also None if another is fetching it.
    """
    part = target.with_name(f"{target.name}.part")
    while True:
        file = lock(part, wait=False)
        if file is None and wait:
            # shared: once it is the chunk, whoever uses it keeps a shared lock for as long as it likes
            file = lock(part, shared=True)
        elif file is not None and is_same(part, file):
            break
        if file is None:
            yield None
            return
        fetched = is_same(target, file)
        unlock(file)
        if fetched:
            yield None
            return
    try:
        yield part
    finally:
        if is_same(part, file):
            part.unlink()
        unlock(file)


def discard(path: Path) -> bool:
    """Whether a file is gone, which it is now unless a process holds it."""
    with suppress(InputError, OSError):  # another user's
        file = lock(path, create=False, wait=False)
        if file is not None:
            try:
                if is_same(path, file):
                    path.unlink()
            finally:
                unlock(file)
    return not path.exists()


def open_chunk(chunk: Path, size: int) -> FileIO | None:
    """The chunk, marked as used, with a lock against eviction; None if it must be fetched."""
    file = lock(chunk, create=False, shared=True)
    if file is None:
        return None
    if os.fstat(file.fileno()).st_size == size and mark_used(file):
        return file
    if is_same(chunk, file):  # nothing here leaves half a chunk: it was damaged
        chunk.unlink()
    unlock(file)
    return None


def mark_used(file: FileIO) -> bool:
    """Mark a chunk as used; False if it has been deleted."""
    about = os.fstat(file.fileno())
    if about.st_nlink and time.time() - about.st_mtime > _TOUCH:
        with suppress(OSError):  # another user's
            os.utime(file.fileno())
    return about.st_nlink > 0
