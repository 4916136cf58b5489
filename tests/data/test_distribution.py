from collections import Counter

import numpy as np
import pytest

from mofi_lightning.data.distribution import Distribution

SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)
VALUES = {
    "equal": np.full(7, 64),
    "one": np.array([3]),
    "with zeros": np.array([0, 0, 1, 5]),
    "heavy tail": (np.random.default_rng(0).pareto(1.0, 5000) * 100).astype(int),
    "normal": np.random.default_rng(1).normal(400, 50, 999).astype(int),
}


def distribution(values: np.ndarray) -> Distribution:
    found = Distribution()
    for part in np.array_split(values, 3):
        found.add(Counter(part.tolist()))
    return found


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_quantiles_are_those_of_numpy(values):
    np.testing.assert_allclose(distribution(values).quantiles(SHARES), np.quantile(values, SHARES))
    assert len(distribution(values)) == len(values)
    assert distribution(values).total == values.sum()


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_bins_count_every_value_once_and_the_last_one_takes_the_tail(values):
    edges, counts, more = distribution(values).bins(32)
    assert len(counts) == len(edges) - 1 <= 33
    assert len(set(np.diff(edges))) == 1
    expected, _ = np.histogram(values, [*edges[:-1], max(edges[-1], values.max() + 1)])
    assert counts == expected.tolist()
    assert more == (values.max() >= edges[-1])
    assert edges[-1] > np.quantile(values, 0.99)


def test_the_share_of_a_value():
    assert distribution(VALUES["with zeros"]).share(0) == 0.5
