"""Work on many cores: ordered, bounded in memory, and gone when the parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mofi_lightning.types import InputError

_T = TypeVar("_T")
_R = TypeVar("_R")

# tasks that wait for a free process, so that none idles while the next one is read
_WAITING = 2


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessMap:
    """Maps functions over tasks in processes that stay until the context is left.

    Args:
        num_workers: processes; 0 works in this one.

    Raises:
        InputError: `num_workers` is negative.
    """

    def __init__(self, num_workers: int) -> None:
        if num_workers < 0:
            raise InputError(f"num_workers must be 0 or more, not {num_workers}")
        self._num_workers = num_workers
        self._pool = ProcessPoolExecutor(num_workers, initializer=_prepare_worker) if num_workers else None

    def __enter__(self) -> ProcessMap:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, function: Callable[[_T], _R], tasks: Iterable[_T]) -> Iterator[_R]:
        """Results of `function` for each of `tasks`, in their order.

        Args:
            function: can be pickled; what it raises is raised here.
            tasks: read as they are needed, `num_workers` + 2 ahead of the results at most.

        Raises:
            InputError: a process died (most often it ran out of memory).
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        running: deque[Future[_R]] = deque()
        try:
            for task in tasks:
                running.append(self._pool.submit(function, task))
                if len(running) == self._num_workers + _WAITING:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, most likely for want of memory; choose fewer with --num_workers"
            ) from error


def map_processes(function: Callable[[_T], _R], tasks: Iterable[_T], num_workers: int) -> Iterator[_R]:
    """Results of `function` for each of `tasks`, in their order, by processes of their own.

    See `ProcessMap`.
    """
    with ProcessMap(num_workers) as mapped:
        yield from mapped(function, tasks)


def _prepare_worker() -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed: its queue would never tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
