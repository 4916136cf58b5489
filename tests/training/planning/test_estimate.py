import pytest

from mofi_lightning.training.planning.estimate import Cluster, largest_rows
from mofi_lightning.types import InputError


def curved(rows: int) -> int:
    """State, activations and a term that grows with the square, as the similarities of a small batch do."""
    return 10_000 + 300 * rows + rows**2 // 200


@pytest.mark.parametrize("known", [40, 256, 3000])
@pytest.mark.parametrize("budget", [200_000, 1_000_000])
def test_the_largest_batch_nearly_fills_the_budget_from_wherever_the_search_starts(known, budget):
    rows = largest_rows(curved, known, curved(known), budget)
    assert rows % 8 == 0 and curved(rows) <= 1.02 * budget and curved(rows + 16) > 0.98 * budget


def test_a_batch_far_beyond_the_planned_one_is_not_promised():
    assert largest_rows(curved, 1, curved(1), 10**9) == 128


def test_a_state_that_exceeds_the_memory_leaves_no_rows():
    assert largest_rows(curved, 64, curved(64), 9_000) == 0


@pytest.mark.parametrize(
    "arguments, word",
    [
        ((0, 8, 80.0, 989.0, 0.4), "--gpus is 0"),
        ((8, 8, -1.0, 989.0, 0.4), "--gpu-memory is -1"),
        ((8, 8, 80.0, 989.0, 40.0), "--mfu is 40"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(arguments, word):
    with pytest.raises(InputError, match=word):
        Cluster(*arguments)
