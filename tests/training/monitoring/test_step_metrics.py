"""Metrics of the steps, against a naive mean."""

import math
import random

import pytest
import torch

from mofi_lightning.distributed import rank
from mofi_lightning.training.monitoring.step_metrics import StepMetrics

_SEED = 5


def steps_of(ranks_number, count):
    """Values of each step: 'b' is in every third one only."""
    draw = random.Random(_SEED + ranks_number)
    return [
        {"a": draw.random(), "c": draw.random(), **({"b": draw.random()} if step % 3 == 0 else {})}
        for step in range(count)
    ]


def add_all(metrics, steps, dtype=torch.float64):
    for step in steps:
        metrics.add({name: torch.tensor(value, dtype=dtype) for name, value in step.items()})


def naive_mean(ranks, name):
    """Mean over the steps that have the name, then over the ranks."""
    of_ranks = [[step[name] for step in steps if name in step] for steps in ranks]
    return math.fsum(math.fsum(values) / len(values) for values in of_ranks) / len(ranks)


def means_of_rank(count):
    metrics = StepMetrics()
    add_all(metrics, steps_of(rank(), count))
    return metrics.means()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("count", [1, 50, 1000])
def test_means_are_those_over_the_steps_and_the_ranks(pool, ranks, count):
    for found in pool(ranks, means_of_rank, count):
        assert found.keys() == {"a", "b", "c"}
        for name, value in found.items():
            expected = naive_mean([steps_of(number, count) for number in range(ranks)], name)
            assert value == pytest.approx(expected, rel=1e-14, abs=0), name


def test_each_call_starts_anew():
    metrics = StepMetrics()
    add_all(metrics, [{"a": 1.0}, {"a": 2.0}])
    assert metrics.means() == {"a": 1.5}
    assert metrics.means() == {}
    add_all(metrics, [{"a": 7.0}])
    assert metrics.means() == {"a": 7.0}


def test_a_discarded_step_does_not_count_nor_hide_the_others():
    metrics = StepMetrics()
    add_all(metrics, [{"a": 1.0}])
    add_all(metrics, [{"a": math.nan, "b": math.inf}])
    metrics.discard()
    add_all(metrics, [{"a": 2.0}])
    assert metrics.means() == {"a": 1.5}
    add_all(metrics, [{"a": math.nan}])
    metrics.discard()
    assert metrics.means() == {}


def test_the_256th_step_can_be_discarded_too():
    metrics = StepMetrics()
    for _ in range(600):
        add_all(metrics, [{"a": 1.0}, {"a": math.nan}])
        metrics.discard()
    assert metrics.means() == {"a": 1.0}


def test_a_value_is_kept_as_it_was_in_its_step():
    metrics, parameter = StepMetrics(), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, fused=True)
    seen = []
    for _ in range(3):
        metrics.add({"scale": parameter.detach().squeeze(0)})
        seen.append(parameter.item())
        parameter.grad = torch.ones(1)
        optimizer.step()
    assert len(set(seen)) == 3
    assert metrics.means()["scale"] == pytest.approx(sum(seen) / 3)


def test_the_newest_value_is_that_of_the_step_added_last():
    metrics = StepMetrics()
    assert metrics.newest("a") is None
    add_all(metrics, [{"a": 1.0, "b": 3.0}, {"b": 4.0, "a": 2.0}])
    assert metrics.newest("a") == 2.0 and metrics.newest("c") is None
    metrics.means()
    assert metrics.newest("a") is None


def test_one_element_integers_and_half_precision_are_averaged_in_fp32():
    metrics = StepMetrics()
    for count in (2**24, 1):
        values = {"count": torch.tensor([count]), "half": torch.tensor(0.5, dtype=torch.bfloat16)}
        metrics.add(values)
    assert metrics.means() == {"count": (2**24 + 1) // 2, "half": 0.5}


def test_a_graph_is_not_kept_alive():
    metrics = StepMetrics()
    metrics.add({"a": torch.ones(1, requires_grad=True).sum()})
    (rows,) = metrics._steps.values()
    assert not rows[0].requires_grad


def test_memory_does_not_grow_with_the_steps_between_two_logs():
    metrics = StepMetrics()
    add_all(metrics, [{"a": 1.0}] * 10_000)
    kept = sum(len(rows) for rows in metrics._steps.values())
    assert kept <= 256
    assert metrics.means() == {"a": 1.0}
