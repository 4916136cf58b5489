import pytest
import torch
from torch import Tensor

from mofi_lightning.functional import chunks, row_wise_adagrad_
from mofi_lightning.testing.largest_tensor import TensorWatch


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("chunk", (2**20, 9))
@pytest.mark.parametrize("steps", ([[1, 3], [3, 4], [3, 1]], [None, None]), ids=["some rows", "all rows"])
def test_rows_follow_the_naive_rule_over_steps_and_the_others_stay(steps, chunk, monkeypatch):
    monkeypatch.setattr(chunks, "_CPU", chunk)
    start = _random(6, 2, 4)
    table, second_moment = start.clone(), torch.zeros(6, 2, dtype=torch.float64)
    expected, sums = start.clone(), torch.zeros(6, 2, dtype=torch.float64)
    for number, ids in enumerate(steps):
        rows = ids or list(range(6))
        gradient = _random(len(rows), 2, 4 + number)[..., :4]
        at = None if ids is None else torch.tensor(ids)
        row_wise_adagrad_(table, second_moment, at, gradient, learning_rate=0.1)
        for row, part in zip(rows, gradient, strict=True):
            for center, g in enumerate(part):
                sums[row, center] += sum(float(v) ** 2 for v in g) / 4
                expected[row, center] -= 0.1 * g / sums[row, center] ** 0.5
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close(second_moment, sums)
    if steps[0] is not None:
        assert torch.equal(table[[0, 2, 5]], start[[0, 2, 5]])


@pytest.mark.parametrize("ids", (None, torch.tensor([0, 1])))
def test_a_row_without_gradient_stays_finite_and_unmoved(ids):
    table = torch.ones(2, 3)
    row_wise_adagrad_(table, torch.zeros(2), ids, torch.zeros(2, 3), learning_rate=0.1)
    assert table.eq(1).all()


@pytest.mark.parametrize("all_rows", (True, False))
def test_an_update_makes_no_tensor_of_the_gradients_size(all_rows):
    table, gradient = torch.zeros(50_000, 1, 64), torch.ones(50_000, 1, 64)
    second_moment, ids = torch.zeros(50_000, 1), None if all_rows else torch.arange(50_000)
    with TensorWatch(rows=1) as watch:
        row_wise_adagrad_(table, second_moment, ids, gradient, learning_rate=0.1)
    assert watch.largest.nbytes <= (100_000 if all_rows else 4 * chunks._CPU)
