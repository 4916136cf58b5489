import numpy as np
import pytest

from mofi_lightning.data.order import CHUNKS_PER_GROUP, FileOrder, PassOrder


@pytest.mark.parametrize("chunks", [1, 3, CHUNKS_PER_GROUP, 2 * CHUNKS_PER_GROUP + 5])
def test_every_row_comes_once_a_pass_in_another_order(chunks):
    sizes = np.random.default_rng(0).integers(1, 30, chunks)
    order = PassOrder(sizes, seed=4)
    n = int(sizes.sum())
    passes = [[order.at(p * n + i) for i in range(n)] for p in range(3)]
    for number, visited in enumerate(passes):
        assert {pass_number for pass_number, _ in visited} == {number}
        assert sorted(row for _, row in visited) == list(range(n))
    if n > 5:
        assert [r for _, r in passes[0]] != [r for _, r in passes[1]]


def test_any_position_can_be_asked_for_first():
    sizes = np.full(40, 7)
    forwards = PassOrder(sizes, 1)
    expected = [forwards.at(i) for i in range(600)]
    scattered = {int(i): PassOrder(sizes, 1).at(int(i)) for i in np.random.default_rng(1).permutation(600)}
    assert [scattered[i] for i in range(600)] == expected


def test_neighbouring_positions_read_few_chunks():
    order = PassOrder(np.full(200, 10), 1)
    chunks = {order.at(i)[1] // 10 for i in range(CHUNKS_PER_GROUP * 10)}
    assert len(chunks) == CHUNKS_PER_GROUP
    rows = [order.at(i)[1] for i in range(10)]
    assert len({row // 10 for row in rows}) > 3, "rows of a group are mixed"


def test_seeds_give_different_orders():
    one, two = (PassOrder(np.array([50]), seed) for seed in (1, 2))
    assert [one.at(i) for i in range(50)] != [two.at(i) for i in range(50)]


def test_file_order_repeats_the_stored_order():
    assert [FileOrder(3).at(i) for i in range(5)] == [(0, 0), (0, 1), (0, 2), (0, 0), (0, 1)]
