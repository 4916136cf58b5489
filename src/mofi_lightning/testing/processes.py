"""Warm gloo processes: a test on several ranks costs milliseconds instead of an import of torch."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import cloudpickle



class GlooPool:
    """`pool(world, fn, *args)` runs `fn(*args)` on `world` ranks; results in order of rank.

    Functions and arguments may be lambdas or of a module that only the caller can import: what the processes
    cannot import travels by value. Each call has a process group of its own, joined through a file. If ranks
    fail, the call raises with their tracebacks, and the processes, perhaps stuck in a collective, are
    replaced.

    Args:
        timeout: seconds a call may take.
    """

    def __init__(self, timeout: float = 120.0) -> None:
        self.timeout = timeout
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def __call__(self, world: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
        while len(self._workers) < world:
            self._workers.append(_start())
        connections = [connection for _, connection in self._workers[:world]]
        with tempfile.TemporaryDirectory() as folder:
            for rank, connection in enumerate(connections):
                job = (rank, world, f"{folder}/store", fn, args)
                connection.send_bytes(pickle.dumps((sys.path, cloudpickle.dumps(job))))
            return self._collect(connections)

    def close(self) -> None:
        """End all processes, and whatever they started."""
        for process, connection in self._workers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
            connection.close()
        self._workers.clear()

    def _collect(self, connections: list[Connection]) -> list[Any]:
        results: dict[int, Any] = {}
        errors: list[str] = []
        silent = dict(enumerate(connections))
        deadline = time.monotonic() + self.timeout
        while silent:
            ready = wait(list(silent.values()), max(deadline - time.monotonic(), 0))
            if not ready:
                errors.append(f"no answer from rank {', '.join(map(str, silent))}")
                break
            for rank, connection in list(silent.items()):
                if connection not in ready:
                    continue
                del silent[rank]
                try:
                    error, results[rank] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    error = "the process died"
                if error:
                    errors.append(f"rank {rank} of {len(connections)}: {error}")
                    # a failure breaks the others' collectives: theirs may arrive first, the cause after
                    deadline = min(deadline, time.monotonic() + 5)
        if errors:
            self.close()
            raise RuntimeError("\n".join(errors))
        return [results[rank] for rank in range(len(connections))]


@cache
def shared_processes() -> GlooPool:
    """The processes that all tests of this session share; they end with it."""
    pool = GlooPool()
    atexit.register(pool.close)
    return pool


def _start() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=False)
    process.start()
    theirs.close()
    return process, ours


def _work(connection: Connection) -> None:
    os.setsid()  # a group of its own, so that `close` also reaches what it starts
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:  # the tests ended without `close`
            return
        try:
            sys.path[:], job = pickle.loads(job)  # the caller's, who may have added to it
            answer = cloudpickle.dumps(("", _run(job)))
        except BaseException:
            answer = pickle.dumps((traceback.format_exc(), None))
        connection.send_bytes(answer)


def _run(job: bytes) -> Any:
    import torch.distributed as dist

    rank, world, store, fn, args = pickle.loads(job)
    # what torchrun would set
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    try:
        return fn(*args)
    finally:
        dist.destroy_process_group()
