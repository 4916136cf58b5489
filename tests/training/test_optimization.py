"""AdamW groups and the schedule."""

import math

import pytest
import torch
from torch import nn

from mofi_lightning.training import Optimization
from mofi_lightning.types import InputError


def test_gains_biases_and_scales_are_not_decayed():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model.register_parameter("scale", nn.Parameter(torch.zeros(1)))
    decayed, kept = Optimization(weight_decay=0.2).optimizer([model]).param_groups
    assert decayed["weight_decay"] == 0.2 and [p.shape for p in decayed["params"]] == [(3, 4)]
    assert kept["weight_decay"] == 0 and len(kept["params"]) == 4


def test_frozen_parameters_are_left_out():
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    (group,) = Optimization().optimizer([model]).param_groups
    assert group["params"] == [model.weight]


def test_the_schedule_equals_torchs_linear_warm_up_followed_by_cosine_annealing():
    warmup, total, lr = 5, 20, 0.3
    optimization = Optimization(lr=lr, warmup_steps=warmup, final_lr_share=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, 0.1 * lr)
    expected = []
    for step in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < warmup - 1:
            linear.step()
        elif step >= warmup:
            cosine.step()
    found = [lr * optimization.lr_factor(step, total) for step in range(total)]
    assert found == pytest.approx(expected)


def test_the_schedule_ends_at_its_final_share():
    assert Optimization(warmup_steps=0).lr_factor(0, 10) == 1
    assert Optimization(warmup_steps=0, final_lr_share=0.25).lr_factor(10, 10) == pytest.approx(0.25)
    assert math.isclose(Optimization(warmup_steps=4).lr_factor(0, 10), 0.25)


def test_impossible_values_are_refused():
    with pytest.raises(InputError, match="lr is 0"):
        Optimization(lr=0)
    with pytest.raises(InputError, match="final_lr_share is 2"):
        Optimization(final_lr_share=2)
