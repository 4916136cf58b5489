import os
import signal
import subprocess
import sys
from itertools import count

import pytest

from mofi_lightning.data.processes import map_processes
from mofi_lightning.types import InputError


def square(x: int) -> int:
    return x * x


def fail_at_three(x: int) -> int:
    if x == 3:
        raise InputError("three is refused")
    return x


def die_at_three(x: int) -> int:
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_come_in_the_order_of_endless_tasks_that_are_read_as_needed(num_workers):
    read = []

    def tasks():
        for n in count():
            read.append(n)
            yield n

    results = map_processes(square, tasks(), num_workers)
    assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
    assert len(read) <= 20 + num_workers + 2
    results.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_worker_is_raised_here(num_workers):
    results = map_processes(fail_at_three, range(10), num_workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="three is refused"):
        next(results)


def test_a_worker_that_dies_is_an_error_in_one_line():
    with pytest.raises(InputError, match="worker process was killed"):
        list(map_processes(die_at_three, range(10), 2))


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(InputError, match="num_workers must be 0 or more, not -1"):
        list(map_processes(square, range(3), -1))


FORK_SERVER = """
import multiprocessing
from mofi_lightning.data.processes import map_processes

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    print(list(map_processes(abs, [-1, -2, -3], 2)))
"""


def test_any_way_of_starting_processes_will_do(tmp_path):
    (tmp_path / "script.py").write_text(FORK_SERVER)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[1, 2, 3]\n", done.stderr
