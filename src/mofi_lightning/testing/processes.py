"""Warm gloo processes: a test on several ranks costs milliseconds instead of an import of torch."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle

# not multiprocessing's own processes: these would run the caller's script again, top to bottom
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from multiprocessing.connection import Connection
from mofi_lightning.testing import processes
processes._work(Connection(int(sys.argv[2])))
"""


class GlooPool:
    """Warm processes that run a function on several ranks.

    Args:
        timeout: seconds a call may take; a collective may wait for half of them.
    """

    def __init__(self, timeout: float = 120.0) -> None:
        self.timeout = timeout
        self._started = 0.0
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []

    def __call__(self, world: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """Run `fn(*args)` on ranks 0 to `world` - 1, in a process group of its own.

        Whatever the processes cannot import travels by value: lambdas, what a notebook or a test module
        defines, and modules whose file has changed since the processes were started.

        Returns:
            The ranks' results, in order of rank.

        Raises:
            RuntimeError: ranks failed or did not answer; the message holds their tracebacks. If some are dead
                or stuck in a collective, the processes are replaced.
        """
        if not self._workers:
            self._started = time.time()
        while len(self._workers) < world:
            self._workers.append(_start())
        connections = [connection for _, connection in self._workers[:world]]
        with tempfile.TemporaryDirectory() as folder:
            for rank, connection in enumerate(connections):
                job = (rank, world, f"{folder}/store", self.timeout / 2, fn, args)
                connection.send_bytes(pickle.dumps((sys.path, _dumps(job, self._started))))
            return self._collect(connections)

    def close(self) -> None:
        """End all processes, and whatever they started."""
        for process, connection in self._workers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            connection.close()
        self._workers.clear()

    def _collect(self, connections: list[Connection]) -> list[Any]:
        results: dict[int, Any] = {}
        errors: list[str] = []
        silent = dict(enumerate(connections))
        alive = True
        deadline = time.monotonic() + self.timeout
        while silent:
            ready = wait(list(silent.values()), max(deadline - time.monotonic(), 0))
            if not ready:
                errors.append(f"no answer from rank {', '.join(map(str, silent))}")
                alive = False
                break
            for rank, connection in list(silent.items()):
                if connection not in ready:
                    continue
                del silent[rank]
                try:
                    error, results[rank] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    error, alive = "the process died", False
                if error:
                    errors.append(f"rank {rank} of {len(connections)}: {error}")
                    # a failure breaks the others' collectives: theirs may arrive first, the cause after
                    deadline = min(deadline, time.monotonic() + 5)
        if not alive:
            self.close()
        if errors:
            raise RuntimeError("\n".join(errors))
        return [results[rank] for rank in range(len(connections))]


@cache
def shared_processes() -> GlooPool:
    """The processes that all tests of this session share; they end with it."""
    pool = GlooPool()
    atexit.register(pool.close)
    return pool


class _Pickler(cloudpickle.Pickler):
    """Sends by value what another process could not import, or would import as it no longer is."""

    def __init__(self, file: io.BytesIO, since: float) -> None:
        super().__init__(file)
        self.by_value: list[Any] = []
        self._since = since
        self._seen: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        name = getattr(obj, "__module__", None)
        if callable(obj) and isinstance(name, str) and name in sys.modules and name not in self._seen:
            self._seen.add(name)
            module = sys.modules[name]
            if _by_value(module, self._since) and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                self.by_value.append(module)
        return super().reducer_override(obj)


def _dumps(job: Any, since: float) -> bytes:
    file = io.BytesIO()
    pickler = _Pickler(file, since)
    try:
        pickler.dump(job)
    finally:
        for module in pickler.by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue()


def _by_value(module: Any, since: float) -> bool:
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or not file or not os.path.isfile(file):
        return False  # cloudpickle knows what to do
    if module.__name__.startswith("mofi_lightning."):
        return False  # the processes run on it themselves: one copy of its classes, not two
    if os.path.getmtime(file) > since:
        return True
    found = _found_at(module.__name__)
    # what is frozen into the interpreter has a file that no import reads
    return found is None or (os.path.isfile(found) and not os.path.samefile(found, file))


def _found_at(name: str) -> str | None:
    """The file that an import of `name` would read in a new process."""
    path, origin = None, None
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        specs = (
            finder.find_spec(".".join(parts[:length]), path)
            for finder in sys.meta_path
            if hasattr(finder, "find_spec")
        )
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return None
        path, origin = spec.submodule_search_locations, spec.origin
    return origin


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        start_new_session=True,  # so that `close` also reaches what it starts
    )
    theirs.close()
    return process, ours


def _work(connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:  # the caller ended without `close`
            return
        connection.send_bytes(_answer(job))


def _answer(job: bytes) -> bytes:
    import torch.distributed as dist

    failed = False
    try:
        sys.path[:], job = pickle.loads(job)  # the caller's, who may have added to it
        answer = cloudpickle.dumps(("", _run(job)))
    except BaseException:
        answer, failed = pickle.dumps((traceback.format_exc(), None)), True
    if failed:
        gc.collect()  # without the error's frames nothing holds the group: it closes, who waits for us fails
    if dist.is_initialized():
        dist.destroy_process_group()
    return answer


def _run(job: bytes) -> Any:
    import torch.distributed as dist

    rank, world, store, timeout, fn, args = pickle.loads(job)
    # what torchrun would set
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout),
    )
    dist.barrier()  # a function without collectives could end before the others are connected
    return fn(*args)
