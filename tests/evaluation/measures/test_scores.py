import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mofi_lightning.evaluation.measures.scores import (
    exact_pairs,
    exact_scores,
    fp32_scores,
    unit,
    window,
)
from mofi_lightning.types import InputError


def _rows(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_rows_of_norm_one_are_not_copied():
    normalised = F.normalize(_rows(100, 33), dim=1)
    assert unit(normalised).data_ptr() == normalised.data_ptr()
    assert unit(unit(_rows(100, 33))).equal(unit(_rows(100, 33)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_other_rows_are_normalised_in_fp64_and_rows_of_norm_one_stay(dtype):
    mixed = _rows(9, 40).to(dtype)
    mixed[::2] = 0
    mixed[::2, 3] = 1
    got = unit(mixed)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, F.normalize(mixed.double(), dim=1).float(), rtol=2e-7, atol=0)
    assert got[::2].equal(mixed[::2].float())


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_very_short_and_very_long_rows_keep_their_direction(length):
    torch.testing.assert_close(unit(_rows(5, 8) * length), unit(_rows(5, 8)), rtol=1e-6, atol=0)


def test_rows_of_zeros_stay_and_rows_that_are_not_finite_are_named():
    rows = _rows(8, 4)
    rows[1] = 0
    assert not unit(rows)[1].any()
    rows[3, 0], rows[6, 1] = torch.nan, torch.inf
    with pytest.raises(InputError, match=r"2 of 8 embeddings are not finite \(rows 3, 6\)"):
        unit(rows)


@pytest.mark.parametrize("width", [1, 3, 16, 100, 512, 2048])
@pytest.mark.parametrize("one_side", [False, True])
def test_fp32_scores_differ_from_exact_ones_by_less_than_half_the_window(width, one_side):
    rows = _rows(300, width)
    if one_side:  # all of one sign: sums that only grow round worst
        rows = rows.abs()
    rows = unit(torch.cat([rows, rows + 1e-3 * _rows(300, width, 1)]))
    difference = fp32_scores(rows, rows).double() - rows.double() @ rows.double().T
    assert difference.abs().max() < window(width) / 2


def test_autocast_and_low_precision_of_products_change_no_score():
    rows = unit(_rows(64, 128))
    want = rows @ rows.T
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fp32_scores(rows, rows).equal(want)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_exact_scores_and_pairs_are_those_of_fp64():
    queries, index = unit(_rows(7, 5)), unit(_rows(11, 5, 1))
    want = queries.double() @ index.double().T
    torch.testing.assert_close(exact_scores(queries, index), want, rtol=0, atol=1e-15)
    query, row = torch.tensor([0, 6, 3]), torch.tensor([10, 0, 3])
    torch.testing.assert_close(exact_pairs(queries, index, query, row), want[query, row], rtol=0, atol=1e-15)
