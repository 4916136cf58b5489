"""Two processes train what one process trains."""

import pytest
import torch
from tests.training.runs import train_mofi


def test_five_steps_of_mofi_on_two_ranks_equal_one_rank(pool, tmp_path):
    (one,) = pool(1, train_mofi, str(tmp_path / "one"), torch.float64, 5)
    two = pool(2, train_mofi, str(tmp_path / "two"), torch.float64, 5)
    assert one["global_step"] == 5 and len(one["losses"]) == 5
    mean_losses = torch.tensor([result["losses"] for result in two], dtype=torch.float64).mean(0)
    assert mean_losses.tolist() == pytest.approx(one["losses"], abs=1e-9)
    assert {"objective.objectives.entity.table", "objective.objectives.entity.second_moment"} <= set(
        one["state"]
    )
    assert one["state"].keys() == two[0]["state"].keys()
    for name, expected in one["state"].items():
        torch.testing.assert_close(
            two[0]["state"][name], expected, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_replicated_ranks_hold_the_same_parameters_and_buffers(pool, tmp_path):
    ranks = pool(2, train_mofi, str(tmp_path), torch.float32, 4, 2)
    for name, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][name]), name


def test_five_steps_move_every_parameter_and_the_table(pool, tmp_path):
    (none,) = pool(1, train_mofi, str(tmp_path / "a"), torch.float64, 1)
    (five,) = pool(1, train_mofi, str(tmp_path / "b"), torch.float64, 5)
    still = [name for name, value in five["state"].items() if torch.equal(value, none["state"][name])]
    assert {name.rpartition(".")[2] for name in still} <= {"mean", "std", "position_ids"}
