import numpy as np

from mofi_lightning.data.long_tail import LongTail, Named, described

IMAGES = np.array([0, 1, 900, 2, 1, 5, 0, 3])


def test_the_most_and_the_least_frequent_entities_are_named():
    tail = LongTail(IMAGES)
    assert tail.most(3) == [Named(2, 900), Named(5, 5), Named(7, 3)]
    assert tail.least(3) == [Named(4, 1), Named(1, 1), Named(3, 2)]
    assert tail.without_images == 2
    assert described([Named(1, 1200)], ["a", "b\x1b[31m"]) == "b\\x1b[31m (1,200)"


def test_bars_count_entities_by_powers_of_two():
    table = [line.split() for line in LongTail(IMAGES).bars()[1:]]
    total = IMAGES.sum()
    assert table[0] == ["none", "2", "0.0%"]
    assert table[1][:3] == ["1", "2", f"{2 / total:.1%}"]
    assert table[2][:3] == ["2-3", "2", f"{5 / total:.1%}"]
    assert table[3][:3] == ["4-7", "1", f"{5 / total:.1%}"]
    assert table[-1][:3] == ["512-1,023", "1", f"{900 / total:.1%}"]
    assert sum(int(line[1]) for line in table) == len(IMAGES)
    assert table[1][3] == table[2][3] == "█" * 40  # most entities
    assert table[3][3] == "█" * 20
    assert table[4] == ["8-15", "0", "0.0%"]


def test_the_head_holds_its_share_of_the_labels():
    tail = LongTail(np.array([10, 80, 10, 0]))
    assert tail.head_share(1 / 3) == 0.8
    assert tail.head_share(0.0001) == 0.8  # one entity at least
    assert tail.head_share(1.0) == 1.0


def test_the_curve_has_few_points_that_fall_from_the_first_rank_to_the_last():
    images = np.random.default_rng(0).zipf(1.5, 100_000).clip(max=10**6)
    curve = LongTail(images).curve()
    assert len(curve) <= 200
    assert curve[0] == (1, images.max()) and curve[-1] == (len(images), images.min())
    descending = np.sort(images)[::-1]
    assert all(size == descending[int(rank) - 1] for rank, size in curve)


def test_no_labels_at_all_are_no_error():
    tail = LongTail(np.zeros(3, dtype=np.int64))
    assert tail.curve() == tail.most(2) == tail.least(2) == []
    assert tail.head_share(0.01) == 0
    assert len(tail.bars()) == 2
