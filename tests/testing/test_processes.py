import os

import pytest
import torch
import torch.distributed as dist

from mofi_lightning.distributed import rank


def _identity() -> tuple[int, int, int]:
    return os.getpid(), dist.get_rank(), torch.get_num_threads()


def _fail_on_one_rank() -> None:
    if rank() == 1:
        raise ValueError("rank 1 is broken")
    dist.barrier()


def test_pool_keeps_its_processes_between_calls(pool):
    first, second = pool(2, _identity), pool(2, _identity)
    assert first == second
    assert [result[1:] for result in first] == [(0, 1), (1, 1)]


def test_pool_reports_the_failing_rank_and_works_on(pool):
    with pytest.raises(RuntimeError, match="rank 1 is broken"):
        pool(2, _fail_on_one_rank)
    assert [result[1] for result in pool(2, _identity)] == [0, 1]
