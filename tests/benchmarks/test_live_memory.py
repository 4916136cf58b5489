from typing import Any

import torch
from benchmarks.objective_costs.live_memory import LiveMemory
from torch import Tensor
from torch.autograd import Function

N = 1000  # floats of a vector: 4,000 bytes


class _Wasteful(Function):
    """The identity, by way of ten copies forward and twenty backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.repeat(10)[: len(x)].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.repeat(20)[: len(gradient)].clone()


def test_a_storage_counts_once_and_until_its_last_view_is_gone():
    x = torch.ones(N)
    with LiveMemory() as memory:
        doubled = x * 2
        view = doubled.view(2, -1)[0]
        assert memory.live == 4 * N
        del doubled
        assert memory.live == 4 * N
        del view
        assert memory.live == 0
    assert memory.peak == memory.largest == 4 * N


def test_what_existed_before_does_not_count_whatever_is_done_to_it():
    x = torch.ones(N)
    with LiveMemory() as memory:
        x.mul_(2)[::2].add_(1)
        del x
    assert memory.peak == 0 and memory.live == 0


def test_an_output_buffer_that_grows_counts_as_it_is():
    with LiveMemory() as memory:
        made = torch.empty(0)
        torch.add(torch.ones(N), 1, out=made)
        assert memory.live == 4 * N
    assert memory.peak == 8 * N  # with the vector of ones


def test_tensors_inside_custom_functions_and_in_the_backward_are_seen():
    x = torch.ones(N, requires_grad=True)
    with LiveMemory() as memory:
        y = _Wasteful.apply(x)
        assert memory.peak == 11 * 4 * N
        torch.autograd.grad(y, x, torch.ones(N))
        assert memory.peak == (1 + 1 + 20 + 1) * 4 * N  # y, its gradient, twenty copies and the result
        del y
    assert memory.live == 0
