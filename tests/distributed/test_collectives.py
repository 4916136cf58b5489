import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mofi_lightning import distributed as D

WORLDS = (2, 3)


def _share(x: Tensor) -> Tensor:
    return x.chunk(D.world_size())[D.rank()]


def _data(rows: int) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _gather_step(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each rank weighs the rows by its rank + 1; returns all rows and its own rows' gradient."""
    own = _share(x).clone().requires_grad_()
    rows = D.gather(own)
    ((D.rank() + 1) * rows.pow(2)).sum().backward()
    return rows.detach(), own.grad


@pytest.mark.parametrize("world", WORLDS)
def test_gather_returns_all_rows_and_sums_their_gradients_over_ranks(pool, world):
    x = _data(6)
    results = pool(world, _gather_step, x)
    for rows, _ in results:
        assert torch.equal(rows, x)
    weight = sum(rank + 1 for rank in range(world))
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), weight * 2 * x)


def _gather_tokens() -> tuple[Tensor, Tensor, Tensor]:
    length = 2 + D.rank()
    tokens = torch.full((1, length, 2), float(D.rank() + 1), requires_grad=True)
    gathered = D.gather(tokens)
    gathered.sum().backward()
    mask = D.gather_labels(torch.ones(1, length, dtype=torch.int64))
    return gathered.detach(), mask, tokens.grad


def test_token_axes_of_different_length_are_padded_to_the_longest(pool):
    for gathered, mask, gradient in pool(2, _gather_tokens):
        assert gathered.shape == (2, 3, 2)
        assert gathered[0, 2].eq(0).all() and gathered[1].eq(2).all()
        assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
        assert gradient.eq(2).all()  # both ranks count every token once


def _reduce_step() -> tuple[float, float]:
    x = torch.tensor([float(D.rank() + 1)], requires_grad=True)
    total = D.all_reduce(x)
    (3 * D.scale_gradient(total, 5)).backward()
    return total.item(), x.grad.item()


def test_all_reduce_sums_and_passes_the_gradient_on_unchanged(pool):
    assert pool(3, _reduce_step) == [(6.0, 15.0)] * 3


def _logsumexp_step(x: Tensor, bounds: list[int]) -> tuple[Tensor, Tensor]:
    own = x[bounds[D.rank()] : bounds[D.rank() + 1]].clone().requires_grad_()
    result = D.all_reduce_logsumexp(own.logsumexp(0))
    result.sum().backward()
    return result.detach(), own.grad


@pytest.mark.parametrize("bounds", ([0, 2, 6], [0, 4, 4, 6]), ids=str)
def test_logsumexp_over_ranks_equals_torch_on_all_rows_though_a_rank_has_none(pool, bounds):
    x = 300 * _data(6)
    whole = x.clone().requires_grad_()
    whole.logsumexp(0).sum().backward()
    results = pool(len(bounds) - 1, _logsumexp_step, x, bounds)
    for value, _ in results:
        torch.testing.assert_close(value, x.logsumexp(0))
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), whole.grad)


def _mean_step(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    own = _share(values).clone().requires_grad_()
    loss = D.global_mean(own, _share(mask))
    loss.backward()
    return loss.detach(), own.grad


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("counted", ([0, 1, 2], [5], [], [0, 1, 2, 3, 4, 5]), ids=str)
def test_mean_of_global_means_over_ranks_is_the_mean_of_the_counted_rows(pool, world, counted):
    values = _data(6)[:, 0]
    mask = torch.zeros(6, dtype=torch.bool)
    mask[counted] = True
    results = pool(world, _mean_step, values, mask)
    expected = values[mask].mean() if counted else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(torch.stack([loss for loss, _ in results]).mean(), expected)
    gradient = torch.cat([gradient for _, gradient in results]) / world  # as data parallelism averages
    torch.testing.assert_close(gradient, mask.double() / max(len(counted), 1))


def test_everything_is_the_plain_operation_without_a_process_group():
    assert not dist.is_initialized()
    x = _data(3).requires_grad_()
    assert (D.world_size(), D.rank()) == (1, 0)
    for result in (D.gather(x), D.gather_labels(x), D.all_reduce(x), D.all_reduce_logsumexp(x)):
        assert torch.equal(result, x)
    loss = D.global_mean(x.sum(1), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and x.grad is not None and x.grad.eq(0).all()


def test_rows_that_do_not_count_may_be_infinite():
    values = torch.tensor([1.0, torch.inf], requires_grad=True)
    loss = D.global_mean(values, torch.tensor([True, False]))
    loss.backward()
    assert loss == 1 and values.grad.tolist() == [1, 0]
