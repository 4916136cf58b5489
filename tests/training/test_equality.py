"""Every layout of ranks trains what one process trains: losses, weights, averages and the entity table."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import train_precision, train_vit

STEPS = 20
TABLE = {"objective.objectives.entity.table", "objective.objectives.entity.second_moment"}

# ranks, copies, slices, activation checkpointing
LAYOUTS = {
    "2 sharded": (2, 1, 1, False),
    "3 sharded": (3, 1, 1, False),
    "2 replicated": (2, "world", 1, False),
    "2 x 2 hybrid": (4, 2, 1, False),
    "2 sharded, sliced and checkpointed": (2, 1, 2, True),
}


def largest_differences(ranks: list[dict[str, Any]], one: dict[str, Any]) -> dict[str, float]:
    """Largest absolute difference of the losses, and of what the state holds, by kind."""
    losses = torch.tensor([result["losses"] for result in ranks], dtype=torch.float64).mean(0)
    found = {"loss": (losses - torch.tensor(one["losses"], dtype=torch.float64)).abs().max().item()}
    for result in ranks:
        assert result["state"].keys() == one["state"].keys()
        for name, expected in one["state"].items():
            kind = "table" if name in TABLE else name.partition(".")[0]
            difference = (result["state"][name].double() - expected.double()).abs().max().item()
            found[kind] = max(found.get(kind, 0.0), difference)
    return found


def check(
    pool: Any, root: Path, steps: int, num_sampled: int | None, one: dict[str, Any], layout: str
) -> None:
    ranks, replicate, slices, checkpointing = LAYOUTS[layout]
    results = pool(ranks, train_vit, str(root), steps, replicate, num_sampled, slices, checkpointing)
    assert len(one["losses"]) == steps and set(one["state"]) >= TABLE
    found = largest_differences(results, one)
    print(layout, {kind: f"{value:.1e}" for kind, value in found.items()})
    assert found.keys() == {"loss", "model", "objective", "average", "table"}
    assert max(found.values()) <= 1e-9, found


def test_four_hybrid_ranks_equal_one_process(pool, tmp_path):
    (one,) = pool(1, train_vit, str(tmp_path / "one"), 4)
    check(pool, tmp_path, 4, 40, one, "2 x 2 hybrid")


@pytest.fixture(scope="module")
def one_process(pool, tmp_path_factory):
    """What one process trains, by the number of sampled classes."""

    @cache
    def trained(num_sampled: int | None) -> dict[str, Any]:
        (result,) = pool(1, train_vit, str(tmp_path_factory.mktemp("one")), STEPS, 1, num_sampled)
        return result

    return trained


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_sampled", [40, None], ids=["sampled", "exact"])
def test_twenty_steps_of_every_layout_equal_those_of_one_process(
    pool, tmp_path, one_process, num_sampled, layout
):
    check(pool, tmp_path, STEPS, num_sampled, one_process(num_sampled), layout)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bf16_loss_curves_of_one_and_two_ranks_agree_within_its_rounding(pool, tmp_path):
    (exact,) = pool(1, train_precision, str(tmp_path / "exact"), STEPS, "32-true")
    (one,) = pool(1, train_precision, str(tmp_path / "one"), STEPS, "bf16-mixed")
    two = torch.tensor(pool(2, train_precision, str(tmp_path / "two"), STEPS, "bf16-mixed")).mean(0)
    exact, one = torch.tensor(exact), torch.tensor(one)
    # An embedding in bf16 is off by 2**-9 of its length, so a logit by scale * 2**-9 and a cross-entropy by
    # twice that. The scales are 32 (entity softmax) and 1 / 0.07 (contrastive), each with half of the weight,
    # and both runs are rounded.
    bound = 2 * 2 * (0.5 * 32 + 0.5 / 0.07) * 2**-9  # 0.18 of losses of 4 to 13
    differences = {"one - two": one - two, "one - fp32": one - exact, "two - fp32": two - exact}
    print(
        {name: (f"{d.square().mean().sqrt():.3f}", f"{d.abs().max():.3f}") for name, d in differences.items()}
    )
    assert (one - two).abs().max() <= bound
    # two ranks round no worse than one: as independent errors of the same size they would differ by sqrt(2)
    rounding = (one - exact).square().mean().sqrt()
    assert (one - two).square().mean().sqrt() <= 2 * rounding
    assert (two - exact).square().mean().sqrt() <= 2 * rounding
