"""Learning rates by the step."""

import math
import warnings

import pytest
import torch
from torch import nn
from transformers import (
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_wsd_schedule,
)

from mofi_lightning.training import Optimization
from mofi_lightning.training.optimization.schedules import StepSchedule
from mofi_lightning.types import InputError

LR, WARMUP, STEPS = 0.3, 5, 40


def optimizer(lr: float = LR) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)


def rates(schedule, steps: int = STEPS) -> list[float]:
    """What a scheduler sets at each of the steps, and after the last one."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps + 1):
            found.append(schedule.optimizer.param_groups[0]["lr"])
            schedule.optimizer.step()
            schedule.step()
    return found


def ours(**options) -> list[float]:
    optimization = Optimization(lr=LR, **{"warmup_steps": WARMUP, **options})
    return rates(optimization.scheduled(optimizer(), STEPS))


@pytest.mark.parametrize(
    ("options", "peer"),
    [
        ({}, lambda o: get_cosine_schedule_with_warmup(o, WARMUP, STEPS)),
        ({"schedule": "rsqrt"}, lambda o: get_inverse_sqrt_schedule(o, WARMUP)),
        (
            {"schedule": "constant", "cooldown_steps": 10, "final_lr_share": 0.1},
            lambda o: get_wsd_schedule(
                o, WARMUP, 10, num_training_steps=STEPS, decay_type="linear", min_lr_ratio=0.1
            ),
        ),
    ],
)
def test_the_schedules_are_those_of_transformers_after_the_warm_up(options, peer):
    expected = rates(peer(optimizer()))
    assert ours(**options)[WARMUP:] == pytest.approx(expected[WARMUP:], rel=1e-12)


def test_the_warm_up_is_transformers_without_its_first_step_of_rate_0():
    expected = rates(get_cosine_schedule_with_warmup(optimizer(), WARMUP, STEPS))
    assert expected[0] == 0
    assert ours()[:WARMUP] == pytest.approx(expected[1 : WARMUP + 1], rel=1e-12)


def test_cosine_ends_at_its_share_as_torchs_annealing():
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), STEPS - WARMUP, 0.1 * LR)
    assert ours(final_lr_share=0.1)[WARMUP:] == pytest.approx(rates(annealing, STEPS - WARMUP), rel=1e-12)


def test_rsqrt_cools_down_linearly_from_where_it_is():
    found = ours(schedule="rsqrt", cooldown_steps=8, final_lr_share=0.02)
    start = math.sqrt(WARMUP / 32)
    expected = [
        LR * min((step + 1) / WARMUP, math.sqrt(WARMUP / max(step, WARMUP))) for step in range(32)
    ] + [LR * (start + (0.02 - start) * (step - 32) / 8) for step in range(32, STEPS + 1)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_cooldown_never_rises():
    found = ours(schedule="rsqrt", cooldown_steps=8, final_lr_share=0.9)
    assert found[32:] == pytest.approx([LR * math.sqrt(WARMUP / 32)] * 9)


def test_constant_stays_and_no_step_has_rate_0():
    assert ours(schedule="constant")[WARMUP - 1 :] == [LR] * (STEPS - WARMUP + 2)
    assert ours(schedule="constant", warmup_steps=0) == [LR] * (STEPS + 1)
    assert all(rate > 0 for options in ({}, {"warmup_steps": 0}) for rate in ours(**options)[:-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"schedule": "constant", "cooldown_steps": -1}, "cooldown_steps is -1"),
        ({"final_lr_share": 2}, "final_lr_share is 2"),
        ({"schedule": "rsqrt", "warmup_steps": 0}, "warmup_steps is 0"),
        ({"cooldown_steps": 3}, "'cosine' falls to the end by itself"),
        ({"schedule": "constant", "final_lr_share": 0.1}, "set cooldown_steps"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        Optimization(**options)


def test_a_run_shorter_than_warm_up_and_cooldown_is_refused():
    optimization = Optimization(schedule="constant", warmup_steps=30, cooldown_steps=11)
    optimization.scheduled(optimizer(), 41)
    with pytest.raises(InputError, match=r"30 and cooldown_steps 11 are more than trainer\.max_steps 40"):
        optimization.scheduled(optimizer(), 40)


@pytest.mark.parametrize("steps", [20, 60])
def test_a_resumed_schedule_follows_its_own_configuration(steps):
    first = Optimization(lr=LR, warmup_steps=WARMUP).scheduled(optimizer(), STEPS)
    for _ in range(10):
        first.optimizer.step()
        first.step()
    changed = Optimization(lr=0.7, schedule="rsqrt", warmup_steps=3)
    resumed = changed.scheduled(optimizer(0.7), steps)
    # the optimizer's own state brings the old rates first
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(first.state_dict())
    whole = rates(changed.scheduled(optimizer(0.7), steps), steps)
    assert rates(resumed, steps - 10) == pytest.approx(whole[10:], rel=1e-12)


def test_the_state_of_a_schedule_is_its_step_and_its_rates():
    schedule = StepSchedule(optimizer(), lambda step: 1 / (step + 1))
    schedule.optimizer.step()
    schedule.step()
    assert schedule.state_dict() == {"last_epoch": 1, "_last_lr": [LR / 2]}
