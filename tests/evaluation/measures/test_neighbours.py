import faiss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mofi_lightning.evaluation.measures import neighbours
from mofi_lightning.evaluation.measures import scores as scoring
from mofi_lightning.evaluation.measures.neighbours import nearest_neighbours, top_k
from mofi_lightning.evaluation.measures.scores import TIE
from mofi_lightning.types import InputError


def _rows(rows: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("tile, block", [(2**14, 2**23), (101, 3000)])
@pytest.mark.parametrize("k", [1, 37])
def test_neighbours_equal_faiss_for_any_size_of_tile_and_block(monkeypatch, tile, block, k):
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(scoring, "BLOCK", block)
    queries, index = _rows(90, 32), _rows(2003, 32, 1)
    peer = faiss.IndexFlatIP(32)
    peer.add(index.numpy())
    scores, rows = peer.search(queries.numpy(), k)
    found = top_k(queries, index, k)
    assert found.rows.equal(torch.from_numpy(rows))
    torch.testing.assert_close(found.scores.float(), torch.from_numpy(scores), rtol=0, atol=1e-6)


def _naive(queries: Tensor, index: Tensor, k: int, left_out: list[int]) -> list[list[int]]:
    """Sorted by fp64 score, to 12 places, then by row."""
    scores = (queries.double() @ index.double().T).tolist()
    order = []
    for own, skipped in zip(scores, left_out, strict=True):
        ranked = sorted((-round(score, 12), row) for row, score in enumerate(own) if row != skipped)
        order.append([row for _, row in ranked[:k]])
    return order


def test_of_rows_that_tie_the_lower_stands_first_also_where_more_tie_than_are_wanted():
    index = torch.cat([_rows(40, 24), _rows(1, 24, 1).expand(30, 24), _rows(40, 24), _rows(5, 24, 1)])
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(2))]
    queries = torch.cat([index[:50], _rows(9, 24, 3)])
    left_out = torch.arange(59)
    for k in (1, 3, 20):
        want = _naive(queries, index, k, left_out.tolist())
        assert top_k(queries, index, k, left_out=left_out).rows.tolist() == want


@pytest.mark.parametrize("spare", [8, 0])
def test_copies_tie_where_rounding_puts_their_scores_on_both_sides_of_a_grid_line(monkeypatch, spare):
    # scores that differ in their last bits around a multiple of `TIE`, as sums in another order give them
    monkeypatch.setattr(neighbours, "SPARE", spare)
    line = round(0.5 / TIE) * TIE + TIE / 2
    scores = [line - 2e-16, 0.9, line + 2e-16, line, 0.2, line + 3e-14] + [-0.5] * 54
    near = torch.tensor([scores], dtype=torch.float64)
    monkeypatch.setattr(neighbours, "exact_pairs", lambda queries, index, query, row: near[0, row])
    monkeypatch.setattr(neighbours, "exact_scores", lambda queries, index: near.clone())
    index = torch.stack([near[0], (1 - near[0] ** 2).sqrt()], dim=1).float()
    found = top_k(torch.tensor([[1.0, 0.0]]), index, 5)
    assert found.rows.tolist() == [[1, 5, 0, 2, 3]]
    assert found.scores[0, 2:].unique().tolist() == [float(near[0, 2])]
    assert top_k(torch.tensor([[1.0, 0.0]]), index, 3).rows.tolist() == [[1, 5, 0]]


def test_copies_stand_in_the_order_of_rows_for_every_one_of_many_queries():
    originals = _rows(200, 24, 4)
    index = originals.repeat(3, 1)
    found = top_k(_rows(600, 24, 5), index, 9)
    for rows in found.rows.view(600, 3, 3).tolist():
        for group in rows:
            assert group == sorted(group) and len({row % 200 for row in group}) == 1


def test_a_collapsed_encoder_has_neighbours_in_the_order_of_rows():
    same = _rows(1, 16).expand(300, 16)
    assert top_k(same[:2], same, 4, left_out=torch.tensor([0, 7])).rows.tolist() == [
        [1, 2, 3, 4],
        [0, 1, 2, 3],
    ]


def test_an_index_of_fewer_rows_gives_all_and_an_empty_one_is_named():
    rows = _rows(4, 3)
    assert top_k(rows, rows, 9).rows.shape == (4, 4)
    assert nearest_neighbours(rows, [2], 9).shape == (1, 3)
    with pytest.raises(InputError, match="the index has 1 rows"):
        top_k(rows[:1], rows[:1], 1, left_out=torch.tensor([0]))


def test_nearest_neighbours_leave_the_query_out_and_come_in_order():
    rows = _rows(61, 8)
    assert nearest_neighbours(rows, [3, 9], 10).tolist() == _naive(rows[[3, 9]], rows, 10, [3, 9])
