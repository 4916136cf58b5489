"""Files in object storage, and the local copies of chunks that all processes of a machine share."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from threading import Lock, Thread
from typing import Any, BinaryIO
from weakref import WeakSet

from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)

ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds; each wait is three times the one before it: half a minute in all
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds without an answer, and without a byte
PREFETCH_THREADS = 2  # of each process; the workers of all ranks add up
_RECENT = 30.0  # seconds for which what was used or fetched is not given up for what is only fetched ahead
_TOUCH = 10.0  # seconds between marks of use
_LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_WAY_OUT = "set data.cache.folder to a local disk with room"


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


def fetch(uri: str, target: Path, size: int | None = None) -> None:
    """Fetch one file of object storage.

    What fails is tried again, a few times and ever later, and each failure is logged. The file appears when
    it is complete. Processes that ask for it at the same time fetch it once.

    Args:
        uri: of the file.
        target: the local file, replaced if it is there.
        size: bytes that the file must have, if it is known.

    Raises:
        InputError: there is no such file, access is refused, or no attempt succeeded.
    """
    with _claimed(target) as part:
        if part is not None:
            _download(uri, part, size)
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
        if name != self._open_name or self._open is None or self._open.closed or not _used(self._open):
            self._release()
            while (opened := _opened(self._folder / name, self._sizes[name])) is None:
                self._fetch(name, ahead=False)
            self._open, self._open_name, self._open_path = opened, name, self._folder / name
        return self._open_path

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetch chunks in the background, in this order, as far as room is to be had; never raises.

        What an earlier call asked for and has not begun is forgotten.
        """
        if self._prefetcher is None or self._prefetcher.process != os.getpid():  # a fork has no threads
            self._prefetcher = _Prefetcher(self._fetch_ahead)
        self._prefetcher.replace(names)

    def _release(self) -> None:
        if self._open is not None:
            _unlock(self._open)
            self._open = None

    def _fetch_ahead(self, name: str) -> bool:
        """Fetch a chunk that no other process fetches; False where there is no room."""
        if (opened := _opened(self._folder / name, self._sizes[name])) is not None:
            _unlock(opened)
            return True
        return self._fetch(name, ahead=True)

    def _fetch(self, name: str, ahead: bool) -> bool:
        target, size = self._folder / name, self._sizes[name]
        with _claimed(target, wait=not ahead) as part:
            if part is None or target.exists():  # another process was faster
                return True
            if not self._make_room(part, size, ahead):
                return False
            _download(f"{self._remote}/{name}", part, size)
            os.replace(part, target)
        return True

    def _make_room(self, part: Path, size: int, ahead: bool) -> bool:
        """Evict chunks until `size` bytes fit, and take these for `part`; False where they are all recent."""
        root = self._cache.root
        lock = _locked(root / ".lock")
        assert lock is not None
        try:
            chunks, taken, promised = [], size, size
            for path in root.rglob("*.*"):
                with suppress(FileNotFoundError):
                    about = path.stat()
                    if path.suffix == ".bin":
                        chunks.append((about.st_mtime, about.st_size, path))
                        taken += about.st_size
                    elif path.suffix == ".part" and not _discarded(path):
                        taken += about.st_size
                        promised += max(0, about.st_size - 512 * about.st_blocks)
            over, lacking = taken - self._limit, promised - shutil.disk_usage(root).free
            for used, freed, path in sorted(chunks):
                if (over <= 0 and lacking <= 0) or (ahead and time.time() - used < _RECENT):
                    break
                if _discarded(path):
                    over, lacking = over - freed, lacking - freed
            if ahead and (over > 0 or lacking > 0):
                return False
            if lacking > 0:
                raise InputError(
                    f"the disk of {root} has {_megabytes(size - lacking)} left for a chunk of "
                    f"{_megabytes(size)}: {_WAY_OUT}"
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
            _unlock(lock)
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


# Locks. A file NAME.part is the download, its lock and its claim on room in one, so nothing is left of them.

_held: WeakSet[FileIO] = WeakSet()


def _give_up_inherited_locks() -> None:
    """A fork shares the locks of its parent, and would keep them when the parent is done or killed."""
    for file in list(_held):
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_give_up_inherited_locks)


def _locked(path: Path, create: bool = True, shared: bool = False, wait: bool = True) -> FileIO | None:
    """The file, locked; None if it does not exist or, without `wait`, another holds it."""
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a+" if create else "r" if shared else "r+")
        _held.add(file)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            _unlock(file)
            raise
    except BlockingIOError:
        return None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not create:
            return None
        raise InputError(f"the cache cannot use {path} ({error.strerror}): {_WAY_OUT}") from error
    return file


def _unlock(file: FileIO) -> None:
    _held.discard(file)
    file.close()


def _is(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def _claimed(target: Path, wait: bool = True) -> Iterator[Path | None]:
    """The file to download `target` into, for this caller alone; None if another has fetched it meanwhile.

    Without `wait`, also None if another is fetching it.
    """
    part = target.with_name(f"{target.name}.part")
    while True:
        file = _locked(part, wait=False)
        if file is None and wait:
            # shared: once it is the chunk, whoever uses it keeps a shared lock for as long as it likes
            file = _locked(part, shared=True)
        elif file is not None and _is(part, file):
            break
        if file is None:
            yield None
            return
        fetched = _is(target, file)
        _unlock(file)
        if fetched:
            yield None
            return
    try:
        yield part
    finally:
        if _is(part, file):
            part.unlink()
        _unlock(file)


def _discarded(path: Path) -> bool:
    """Whether a file is gone, which it is now unless a process holds it."""
    with suppress(InputError, OSError):  # another user's
        file = _locked(path, create=False, wait=False)
        if file is not None:
            try:
                if _is(path, file):
                    path.unlink()
            finally:
                _unlock(file)
    return not path.exists()


def _opened(chunk: Path, size: int) -> FileIO | None:
    """The chunk, marked as used, with a lock against eviction; None if it must be fetched."""
    file = _locked(chunk, create=False, shared=True)
    if file is None:
        return None
    if os.fstat(file.fileno()).st_size == size and _used(file):
        return file
    if _is(chunk, file):  # nothing here leaves half a chunk: it was damaged
        chunk.unlink()
    _unlock(file)
    return None


def _used(file: FileIO) -> bool:
    """Mark a chunk as used; False if it has been deleted."""
    about = os.fstat(file.fileno())
    if about.st_nlink and time.time() - about.st_mtime > _TOUCH:
        with suppress(OSError):  # another user's
            os.utime(file.fileno())
    return about.st_nlink > 0


# Downloads. Retries are made here, where they are seen, so the libraries make as few of their own as may be.


class _Refused(Exception):
    """The storage's answer would be the same another time."""

    def __init__(self, error: object, status: int | None = None) -> None:
        super().__init__(str(error))
        self.missing = status == 404


def _final(status: object) -> bool:
    """Whether an HTTP status is an answer and no passing trouble."""
    return isinstance(status, int) and 300 <= status < 500 and status not in (408, 425, 429)


def _download(uri: str, part: Path, size: int | None) -> None:
    """Write a file of object storage into `part`, which exists."""
    scheme, _, address = uri.partition("://")
    if scheme not in _TRANSPORTS:
        raise InputError(
            f"{uri} cannot be read: {scheme}:// is none of {', '.join(f'{name}://' for name in _TRANSPORTS)} "
            "(for other storage that speaks S3, use s3:// and set AWS_ENDPOINT_URL)"
        )
    transport, credentials = _TRANSPORTS[scheme]
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with part.open("r+b") as file:
                transport(address, file)
                received = file.tell()
                file.truncate()
                file.flush()
                os.fsync(file.fileno())  # a crash of the machine must not leave a whole chunk of zeros
            if size is None or received == size:
                return
            failure = f"it has {received} bytes, {size} are expected"
        except _Refused as error:
            if error.missing:
                raise InputError(f"{uri} does not exist ({_line(error)}): check the address") from error
            raise InputError(f"{uri} cannot be read ({_line(error)}): {credentials}") from error
        except ModuleNotFoundError as error:
            package = {"gs": "google-cloud-storage", "azure": "azure-storage-blob"}.get(scheme, error.name)
            raise InputError(f"{uri} needs a package: pip install {package}") from error
        except Exception as error:  # whatever the libraries make of a network that fails
            if isinstance(error, OSError) and error.errno in _LOCAL_FAULTS:
                raise InputError(f"{part.parent} cannot take {uri} ({error.strerror}): {_WAY_OUT}") from error
            failure = _line(error) or type(error).__name__
        if attempt < ATTEMPTS:
            pause = wait * random.uniform(0.5, 1.5)  # else all workers come back at the same moment
            _log.warning(
                "%s: attempt %d of %d failed (%s), next in %.1f s", uri, attempt, ATTEMPTS, failure, pause
            )
            time.sleep(pause)
            wait *= 3
    raise InputError(
        f"{uri} could not be fetched in {ATTEMPTS} attempts ({failure}): check the network and the storage, "
        "then start again"
    )


def _line(error: object) -> str:
    return " ".join(str(error).split())


def _megabytes(size: int) -> str:
    return f"{max(size, 0) / 1e6:,.1f} MB"


@lru_cache(maxsize=1)
def _s3_client(process: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """A client is not to be used in a fork; what it is made from is in the environment."""
    from boto3 import Session
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    return Session().client("s3", config=config)


def _from_s3(address: str, file: BinaryIO) -> None:
    from botocore import exceptions

    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    bucket, _, key = address.partition("/")
    try:
        answer = _s3_client(os.getpid(), settings).get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            for block in body.iter_chunks(1 << 20):
                file.write(block)
    except exceptions.ClientError as error:
        code, message = (error.response.get("Error", {}).get(name, "") for name in ("Code", "Message"))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if _final(status) and code != "RequestTimeout":
            raise _Refused(f"{code}: {message}", status) from error
        raise ConnectionError(f"{code}: {message}") from error
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.ProfileNotFound,
        exceptions.ParamValidationError,
        exceptions.SSOError,
        ValueError,  # of an endpoint that is no URL
    ) as error:
        raise _Refused(error) from error


@lru_cache(maxsize=1)
def _gs_client(process: int) -> Any:
    from google.cloud.storage import Client

    return Client()


def _from_gs(address: str, file: BinaryIO) -> None:
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import DefaultCredentialsError

    bucket, _, key = address.partition("/")
    try:
        blob = _gs_client(os.getpid()).bucket(bucket).blob(key)
        blob.download_to_file(file, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT), retry=None)
    except GoogleAPICallError as error:
        if _final(int(error.code or 0)):
            raise _Refused(error, int(error.code)) from error
        raise
    except DefaultCredentialsError as error:
        raise _Refused(error) from error


def _from_hf(address: str, file: BinaryIO) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HfUriError, OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, parse_hf_uri

    try:
        uri = parse_hf_uri(f"hf://{address}")
        url = hf_hub_url(uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT, READ_TIMEOUT, READ_TIMEOUT)
        with get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=timeout
        ) as answer:
            hf_raise_for_status(answer)
            for block in answer.iter_bytes(1 << 20):
                file.write(block)
    except HfHubHTTPError as error:
        if _final(error.response.status_code):
            raise _Refused(error, error.response.status_code) from error
        raise
    except (HfUriError, OfflineModeIsEnabled) as error:
        raise _Refused(error) from error


def _from_azure(address: str, file: BinaryIO) -> None:
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import BlobServiceClient

    container, _, key = address.partition("/")
    try:
        with BlobServiceClient.from_connection_string(
            os.environ.get("AZURE_STORAGE_CONNECTION_STRING", ""),
            retry_total=0,
            connection_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
        ) as client:
            client.get_blob_client(container, key).download_blob().readinto(file)
    except HttpResponseError as error:
        if _final(error.status_code):
            raise _Refused(error.message, error.status_code) from error
        raise
    except ValueError as error:  # of a connection string that is none
        raise _Refused(error) from error


_TRANSPORTS: dict[str, tuple[Callable[[str, BinaryIO], None], str]] = {
    "s3": (
        _from_s3,
        "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to an account that may read it, "
        "and AWS_ENDPOINT_URL where the storage is not Amazon's",
    ),
    "gs": (_from_gs, "set GOOGLE_APPLICATION_CREDENTIALS to an account that may read it"),
    "hf": (_from_hf, "set HF_TOKEN to an account that may read it, and HF_HUB_OFFLINE to nothing"),
    "azure": (_from_azure, "set AZURE_STORAGE_CONNECTION_STRING to an account that may read it"),
}
