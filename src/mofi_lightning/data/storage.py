"""Files in object storage, and the local copies of chunks that all processes of a machine share."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from mofi_lightning.data.downloads import download
from mofi_lightning.data.file_locks import WAY_OUT, claimed, discard, lock, mark_used, open_chunk, unlock
from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)

PREFETCH_THREADS = 2  # of each process; the workers of all ranks add up
_RECENT = 30.0  # seconds for which what was used or fetched is not given up for what is only fetched ahead


@dataclass(frozen=True)
class Cache:
    """Where chunks of remote data sets are kept.

    Attributes:
        folder: they are kept in its subfolder mofi_lightning/chunks; None is $XDG_CACHE_HOME or ~/.cache.
        gigabytes: the most they take, those of all data sets together; more than 0. The least recently used
            ones make room for others.

    Raises:
        InputError: `gigabytes` is no such number.
    """

    folder: str | None = None
    gigabytes: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.gigabytes < math.inf:
            raise InputError(
                f"a cache of {self.gigabytes} gigabytes is none: give data.cache.gigabytes above 0"
            )

    @property
    def root(self) -> Path:
        """The folder that holds the cache and nothing else."""
        # a subfolder of its own: what is evicted must never be a user's file
        base = self.folder or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "mofi_lightning" / "chunks"


def is_remote(location: str) -> bool:
    """Whether `location` is a URI, as s3://bucket/folder, and no path."""
    return location.partition("://")[0].isalnum() and "://" in location


def fetch(uri: str, target: Path, size: int | None = None, most: int = 1 << 34) -> None:
    """Fetch one file of object storage.

    What fails is tried again, a few times and ever later, and each failure is logged. The file appears when
    it is complete. Processes that ask for it at the same time fetch it once.

    Args:
        uri: of the file.
        target: the local file, replaced if it is there.
        size: bytes that the file must have, if it is known.
        most: bytes that it may have otherwise.

    Raises:
        InputError: there is no such file, access is refused, or no attempt succeeded.
    """
    with claimed(target) as part:
        if part is not None:
            download(uri, part, size, most)
            os.replace(part, target)


class ChunkCache:
    """Local copies of the chunks of a remote data set, fetched when they are needed.

    The folder is shared by all processes of a machine: each chunk is fetched by one of them. Locks are the
    kernel's and end with the process that holds them. The chunk that a process reads is never evicted.

    Args:
        remote: URI of the folder of the chunks.
        folder: of the local copies, below `cache.root`.
        sizes: bytes of each chunk, by file name.
        cache: root folder of all data sets, and its limit.

    Raises:
        InputError: the limit is below two chunks, or a name is not that of a chunk.
    """

    def __init__(self, remote: str, folder: Path, sizes: Mapping[str, int], cache: Cache) -> None:
        self._open: FileIO | None = None  # holds a lock on the chunk in use
        self._open_name, self._open_path = "", folder
        for name in sizes:
            if os.sep in name or name.startswith(".") or not name.endswith(".bin"):
                raise InputError(f"{remote}/index.json was not written by mofi: {name!r} is no chunk")
        self._limit = int(cache.gigabytes * 1e9)
        largest = max(sizes.values(), default=0)
        if self._limit < 2 * largest:
            raise InputError(
                f"a cache of {cache.gigabytes:g} GB cannot hold two chunks of {_megabytes(largest)} of "
                f"{remote}: raise data.cache.gigabytes"
            )
        self._remote, self._folder, self._sizes, self._cache = remote, folder, sizes, cache
        self._prefetcher: _Prefetcher | None = None
        self._warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkCache, (self._remote, self._folder, self._sizes, self._cache)

    def __del__(self) -> None:
        if self._open is not None:
            self._open.close()

    def ensure(self, name: str) -> Path:
        """The local copy of a chunk, complete; it stays until this process asks for another one.

        Raises:
            InputError: it cannot be fetched, or the disk is full.
        """
        if name != self._open_name or self._open is None or self._open.closed or not mark_used(self._open):
            self._release()
            while (file := open_chunk(self._folder / name, self._sizes[name])) is None:
                self._fetch(name, ahead=False)
            self._open, self._open_name, self._open_path = file, name, self._folder / name
        return self._open_path

    def drop(self, name: str) -> None:
        """Forget the local copy of a chunk: it is damaged."""
        self._release()
        (self._folder / name).unlink(missing_ok=True)

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetch chunks in the background, in this order, as far as room is to be had; never raises.

        What an earlier call asked for and has not begun is forgotten.
        """
        if self._prefetcher is None or self._prefetcher.process != os.getpid():  # a fork has no threads
            self._prefetcher = _Prefetcher(self._fetch_ahead)
        self._prefetcher.replace(names)

    def _release(self) -> None:
        if self._open is not None:
            unlock(self._open)
            self._open = None

    def _fetch_ahead(self, name: str) -> bool:
        """Fetch a chunk that no other process fetches; False where there is no room."""
        if (file := open_chunk(self._folder / name, self._sizes[name])) is not None:
            unlock(file)
            return True
        return self._fetch(name, ahead=True)

    def _fetch(self, name: str, ahead: bool) -> bool:
        target, size = self._folder / name, self._sizes[name]
        with claimed(target, wait=not ahead) as part:
            if part is None or target.exists():  # another process was faster
                return True
            if not self._make_room(part, size, ahead):
                return False
            download(f"{self._remote}/{name}", part, size, size)
            os.replace(part, target)
        return True

    def _make_room(self, part: Path, size: int, ahead: bool) -> bool:
        """Evict chunks until `size` bytes fit, and take these for `part`; False where they are all recent."""
        root = self._cache.root
        lock_file = lock(root / ".lock")
        assert lock_file is not None
        try:
            chunks, taken, promised = [], size, size
            for path in root.rglob("*.*"):
                with suppress(FileNotFoundError):
                    about = path.stat()
                    if path.suffix == ".bin":
                        chunks.append((about.st_mtime, about.st_size, path))
                        taken += about.st_size
                    elif path.suffix == ".part" and not discard(path):
                        taken += about.st_size
                        promised += max(0, about.st_size - 512 * about.st_blocks)
            over, lacking = taken - self._limit, promised - shutil.disk_usage(root).free
            for used, freed, path in sorted(chunks):
                if (over <= 0 and lacking <= 0) or (ahead and time.time() - used < _RECENT):
                    break
                if discard(path):
                    over, lacking = over - freed, lacking - freed
            if ahead and (over > 0 or lacking > 0):
                return False
            if lacking > 0:
                raise InputError(
                    f"the disk of {root} has {_megabytes(size - lacking)} left for a chunk of "
                    f"{_megabytes(size)}: {WAY_OUT}"
                )
            if over > 0 and not self._warned:
                self._warned = True
                _log.warning(
                    "the chunks in use take %s more than the cache %s may: raise data.cache.gigabytes",
                    _megabytes(over),
                    root,
                )
            os.truncate(part, size)  # a hole of the file's size, which other processes count
        finally:
            unlock(lock_file)
        return True


class _Prefetcher:
    """A few threads of one process that end when there is nothing to do."""

    def __init__(self, fetch_ahead: Callable[[str], bool]) -> None:
        self.process = os.getpid()
        self._fetch_ahead = fetch_ahead
        self._lock = Lock()
        self._names: deque[str] = deque()
        self._threads = 0

    def replace(self, names: Sequence[str]) -> None:
        with self._lock, suppress(RuntimeError):  # the interpreter ends: no thread starts
            self._names = deque(names)
            while self._threads < min(PREFETCH_THREADS, len(self._names)):
                Thread(target=self._run, name="prefetch", daemon=True).start()
                self._threads += 1

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._names:
                    self._threads -= 1
                    return
                name = self._names.popleft()
            try:
                room = self._fetch_ahead(name)
            except Exception as error:  # it is raised when the chunk is needed
                _log.warning("chunk %s was not fetched ahead: %s", name, error)
                continue
            if not room:
                with self._lock:
                    self._names.clear()


def _megabytes(size: int) -> str:
    return f"{max(size, 0) / 1e6:,.1f} MB"
