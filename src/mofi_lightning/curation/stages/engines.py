"""Where the parts are worked on: by processes of this machine, or by the workers of a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

from mofi_lightning.types import InputError

EngineName = Literal["native", "ray"]

_T = TypeVar("_T")
_R = TypeVar("_R")

# a task whose worker died is given to another one this many times
_RETRIES = 10
# to wait for a cluster's first sign
_SECONDS = 10.0
# tasks that wait for each worker, so that none idles and the cluster's queue stays short
_WAITING = 2


class Map(Protocol):
    """Results of `function` for each of `tasks`, in any order: tasks write files that carry their number.

    A function with a true attribute `uses_gpu` is given one by a cluster that has some.
    """

    def __call__(self, function: Callable[[_T], _R], tasks: Iterable[_T]) -> Iterator[_R]:
        """Function and tasks can be pickled; what the function raises is raised here."""


@contextmanager
def open_engine(name: EngineName, num_workers: int | None, address: str | None) -> Iterator[Map]:
    """The engine `name`, for as long as the context lasts.

    Args:
        name: `native` for processes of this machine, `ray` for a Ray cluster that shares its file system.
        num_workers: processes, or workers of a Ray that is started here; by default one for each core. 0
            works in this process.
        address: of a running Ray cluster (`auto`, `ray://host:10001`); None starts one on this machine.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    from mofi_lightning.data.processes import ProcessMap, available_cores

    workers = available_cores() if num_workers is None else num_workers
    if name == "native":
        import torch  # noqa: F401  the processes are forks of this one, so it is loaded once

        if address is not None:
            raise InputError(f"--ray_address {address} is for --engine ray; the engine is native")
        with ProcessMap(workers) as mapped:
            yield mapped
        return
    ray = _start_ray(address, max(1, workers))
    try:
        yield lambda function, tasks: _map_ray(ray, function, tasks)
    finally:
        ray.shutdown()


def _start_ray(address: str | None, workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError("the engine ray needs Ray; pip install 'mofi-lightning[ray]' brings it") from error
    _knock(address)
    here: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    return ray


def _knock(address: str | None) -> None:
    """Refuse an address where nothing listens: Ray would try for minutes."""
    host = re.fullmatch(r"(?:ray://)?(\[?[^/]+?\]?):(\d+)", address or "")
    if host:
        try:
            socket.create_connection((host[1].strip("[]"), int(host[2])), _SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> InputError:
    return InputError(
        f"no Ray cluster answers at {address or 'this machine'} ({' '.join(str(error).split())[:200]}); "
        "`ray start --head` starts one, and --ray_address names it"
    )


def _map_ray(ray: Any, function: Callable[[_T], _R], tasks: Iterable[_T]) -> Iterator[_R]:
    gpus = 1 if getattr(function, "uses_gpu", False) and ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)(_in_worker)
    most = _WAITING + int(ray.cluster_resources().get("CPU", 1)) * _WAITING
    running: list[Any] = []
    for task in tasks:
        running.append(remote.remote(function, task))
        if len(running) >= most:
            done, running = ray.wait(running)
            yield from _results(ray, done)
    while running:
        done, running = ray.wait(running)
        yield from _results(ray, done)


def _results(ray: Any, done: list[Any]) -> Iterator[Any]:
    try:
        yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"a worker of the Ray cluster died {_RETRIES + 1} times ({' '.join(str(error).split())[:200]}); "
            "give it more memory, or smaller parts with --part_rows"
        ) from error


def _in_worker(function: Callable[[_T], _R], task: _T) -> _R:
    import torch

    torch.set_num_threads(1)
    return function(task)
