import os
import signal

import pytest

from mofi_lightning.curation.stages.engines import open_engine
from mofi_lightning.types import InputError


def square(number: int) -> int:
    if number < 0:
        raise InputError(f"{number} is below 0")
    return number**2


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def process(number: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_native_processes_map_and_pass_errors_on(workers: int) -> None:
    with open_engine("native", workers, None) as map_parts:
        assert sorted(map_parts(square, range(7))) == [number**2 for number in range(7)]
        with pytest.raises(InputError, match="-3 is below 0"):
            list(map_parts(square, [1, -3]))
    with open_engine("native", workers, None) as map_parts:
        first, second = set(map_parts(process, range(9))), set(map_parts(process, range(9)))
        assert len(first | second) <= max(1, workers)  # the same ones serve all stages


def test_a_worker_that_dies_is_reported() -> None:
    with (
        pytest.raises(InputError, match="a worker process was killed"),
        open_engine("native", 1, None) as map_parts,
    ):
        list(map_parts(die, [1]))


def test_impossible_engines_are_refused() -> None:
    with (
        pytest.raises(InputError, match="num_workers must be 0 or more, not -1"),
        open_engine("native", -1, None),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"--ray_address auto is for --engine ray"),
        open_engine("native", 1, "auto"),
    ):
        pass


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"):
        with (
            pytest.raises(InputError, match=rf"no Ray cluster answers at {address} .*`ray start --head`"),
            open_engine("ray", 2, address),
        ):
            pass


@pytest.mark.slow
def test_ray_maps_and_passes_errors_on() -> None:
    with open_engine("ray", 2, None) as map_parts:
        assert sorted(map_parts(square, range(20))) == [number**2 for number in range(20)]
        with pytest.raises(InputError, match="-3 is below 0"):
            list(map_parts(square, [1, -3]))
