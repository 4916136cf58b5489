import numpy as np
import pytest

from mofi_lightning.data.order import CHUNKS_PER_GROUP, FileOrder, PassOrder


@pytest.mark.parametrize("chunks", [1, 3, CHUNKS_PER_GROUP, 2 * CHUNKS_PER_GROUP, 2 * CHUNKS_PER_GROUP + 5])
def test_every_row_comes_once_a_pass_in_another_order(chunks):
    sizes = np.random.default_rng(0).integers(1, 30, chunks)
    order = PassOrder(sizes, seed=4)
    n = int(sizes.sum())
    passes = [order.visits(p * n, n) for p in range(3)]
    for number, visited in enumerate(passes):
        assert set(visited.passes.tolist()) == {number}
        assert sorted(visited.rows.tolist()) == list(range(n))
    if n > 5:
        assert passes[0].rows.tolist() != passes[1].rows.tolist()


@pytest.mark.parametrize("count", [1, 7, 100, 600])
def test_any_position_can_be_asked_for_first_and_any_number_at_once(count):
    sizes = np.full(40, 7)
    expected = PassOrder(sizes, 1).visits(0, 1200)
    one = PassOrder(sizes, 1)
    for start in np.random.default_rng(1).integers(0, 600, 30).tolist():
        for order in (one, PassOrder(sizes, 1)):
            for found, wanted in zip(order.visits(start, count), expected, strict=True):
                assert found.tolist() == wanted[start : start + count].tolist()


def test_neighbouring_positions_read_few_chunks():
    rows = PassOrder(np.full(200, 10), 1).visits(0, CHUNKS_PER_GROUP * 10).rows
    assert len(set((rows // 10).tolist())) == CHUNKS_PER_GROUP
    assert len(set((rows[:10] // 10).tolist())) > 3, "rows of a group are mixed"


def test_places_follow_the_storage_within_the_chunks_that_are_open_together():
    order = PassOrder(np.full(2 * CHUNKS_PER_GROUP, 10), 1)
    for begin in (0, CHUNKS_PER_GROUP * 10):
        _, rows, places = order.visits(begin, CHUNKS_PER_GROUP * 10)
        stored = rows[np.argsort(places)].reshape(CHUNKS_PER_GROUP, 10)
        assert (stored == stored[:, :1] // 10 * 10 + np.arange(10)).all(), "chunk by chunk, row by row"
        assert np.sort(places) == pytest.approx((np.arange(CHUNKS_PER_GROUP * 10) + 0.5) / len(rows))


@pytest.mark.parametrize("chunks", [3, 50])
@pytest.mark.parametrize("count", [1, 40, 400])
def test_the_chunks_ahead_are_those_of_the_groups_read_and_of_the_next(chunks, count):
    sizes = np.random.default_rng(2).integers(1, 30, chunks)
    chunk_of = np.repeat(np.arange(chunks), sizes)
    order = PassOrder(sizes, 3)
    for start in range(0, 2 * int(sizes.sum()), 37):
        ahead, until = order.ahead(start, start + count, 0, 1)
        assert until >= start + count
        end_of_next = order.ahead(until, until + 1, 0, 1).until
        last = set(chunk_of[order.visits(until, end_of_next - until).rows].tolist())
        assert set(chunk_of[order.visits(start, until - start).rows].tolist()) <= set(ahead[: -len(last)])
        assert set(ahead[-len(last) :]) == last


def test_only_chunks_of_the_places_asked_for_are_ahead():
    sizes = np.random.default_rng(2).integers(1, 30, 100)
    chunk_of = np.repeat(np.arange(100), sizes)
    order = PassOrder(sizes, 3)
    whole = order.ahead(50, 60, 0, 1)
    part = order.ahead(50, 60, 0.25, 0.5)
    assert part.until == whole.until
    begin = whole.until - int(sizes[whole.chunks[:CHUNKS_PER_GROUP]].sum())
    visits = order.visits(begin, whole.until - begin)
    inside = (visits.places > 0.25) & (visits.places < 0.5)
    read = set(chunk_of[visits.rows[inside]].tolist())
    assert set(part.chunks[: len(read)]) == read
    assert len(part.chunks) < len(whole.chunks) / 2


def test_seeds_give_different_orders():
    one, two = (PassOrder(np.array([50]), seed).visits(0, 50).rows.tolist() for seed in (1, 2))
    assert one != two


def test_file_order_repeats_the_stored_order():
    visits = FileOrder(np.array([2, 1])).visits(1, 5)
    assert visits.rows.tolist() == [1, 2, 0, 1, 2]
    assert visits.passes.tolist() == [0] * 5
    assert (np.diff(visits.places) > 0).all()


def test_file_order_looks_ahead_from_the_chunk_that_is_read():
    order = FileOrder(np.full(20, 5))
    assert order.ahead(12, 14, 0, 1) == (list(range(2, 18)), 15)
    assert order.ahead(100 + 95, 100 + 96, 0.5, 1) == ([19], 200)
