"""Norms of gradients, clipping, and faults, on one and on several ranks."""

import math
import time

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.training.optimization.gradients import Gradients

LOSS = torch.tensor(1.0, dtype=torch.float64)


def two_parts() -> tuple[nn.Module, nn.Module]:
    """Shapes that no number of ranks divides, a scale, and a parameter that gets no gradient."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    head = nn.Linear(3, 1).double()
    head.register_parameter("scale", nn.Parameter(torch.ones(1, dtype=torch.float64)))
    head.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    return tower, head


def backward(tower: nn.Module, head: nn.Module) -> Tensor:
    """One backward on this rank's rows of 12."""
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = 12 // world_size()
    mine = rows[rank() * share : (rank() + 1) * share]
    loss = (head(tower(mine)) * 20).square().mean()
    loss.backward()
    return loss.detach()


def whole(parameter: nn.Parameter) -> Tensor | None:
    gradient = parameter.grad
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def measured(replicas: int, how: str) -> tuple[dict[str, float], float, list[Tensor | None]]:
    """Norms, total, and gradients after clipping, on the ranks of the pool."""
    tower, head = two_parts()
    if world_size() > 1:
        ranks = world_size()
        shape = (ranks,) if replicas == 1 else (replicas, ranks // replicas)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        for module in (tower, head):
            fully_shard(module, mesh=mesh)
    loss = backward(tower, head)
    gradients = Gradients({"tower": tower.parameters(), "head": head.parameters()}, replicas)
    gradients.measure(loss)
    if how == "value":
        gradients.clip_values(0.5)
    else:
        gradients.clip(0.5)
    return gradients.norms, gradients.total, [whole(p) for m in (tower, head) for p in m.parameters()]


@pytest.mark.parametrize(("ranks", "replicas"), [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("how", ["norm", "value"])
def test_clipping_is_torchs_on_any_number_of_ranks(pool, ranks, replicas, how):
    tower, head = two_parts()
    backward(tower, head)
    parameters = [*tower.parameters(), *head.parameters()]
    norms = {
        name: math.sqrt(sum(p.grad.square().sum().item() for p in part.parameters() if p.grad is not None))
        for name, part in (("tower", tower), ("head", head))
    }
    if how == "value":
        total = math.hypot(*norms.values())
        nn.utils.clip_grad_value_(parameters, 0.5)
    else:
        total = nn.utils.clip_grad_norm_(parameters, 0.5).item()
    assert total > 1  # so that there is something to clip
    for found_norms, found_total, clipped in pool(ranks, measured, replicas, how):
        assert found_norms == pytest.approx(norms, rel=1e-12)
        assert found_total == pytest.approx(total, rel=1e-12)
        for found, parameter in zip(clipped, parameters, strict=True):
            if parameter.grad is None:
                assert found is None
            else:
                torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-15)


def test_small_gradients_are_not_scaled():
    tower, head = two_parts()
    loss = backward(tower, head)
    before = [p.grad.clone() for p in tower.parameters()]
    gradients = Gradients({"tower": tower.parameters()})
    gradients.measure(loss)
    gradients.clip(gradients.total * 1.01)
    assert all(torch.equal(p.grad, b) for p, b in zip(tower.parameters(), before, strict=True))


def found_finite(place: str, faulty: int, value: float) -> tuple[bool, bool]:
    """Whether this rank holds the step for finite if `value` is in the loss or gradient of one rank."""
    tower, head = two_parts()
    mesh = init_device_mesh("cpu", (world_size(),))
    for module in (tower, head):
        fully_shard(module, mesh=mesh)
    loss = backward(tower, head)
    gradients = Gradients({"tower": tower.parameters(), "head": head.parameters()})
    gradients.measure(loss)
    before = gradients.finite
    if rank() == faulty:
        if place == "loss":
            loss = loss * value
        else:
            local = next(tower.parameters()).grad.to_local()
            local.view(-1)[0] = value
    gradients.measure(loss)
    return before, gradients.finite


@pytest.mark.parametrize("place", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_fault_of_one_rank_is_seen_by_all(pool, place, value):
    for faulty in (0, 1):
        assert pool(2, found_finite, place, faulty, value) == [(True, False)] * 2


def test_an_infinite_loss_with_finite_gradients_is_no_finite_step():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    gradients = Gradients({"layer": layer.parameters()})
    gradients.measure(torch.tensor(-math.inf))
    assert not gradients.finite and gradients.norms == {"layer": 2.0}
    gradients.measure(torch.tensor(3.0))
    assert gradients.finite and gradients.total == 2.0


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16():
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    layer.weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradients = Gradients({"layer": layer.parameters()})
    gradients.measure(torch.tensor(1.0))
    expected = layer.weight.grad.double().norm().item()
    assert gradients.total == pytest.approx(expected, rel=1e-6)
    assert torch.tensor(expected).bfloat16().item() != pytest.approx(expected, rel=1e-6)


def test_parts_without_gradient_and_frozen_ones_do_not_disturb():
    layer, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    gradients = Gradients({"layer": layer.parameters(), "frozen": frozen.parameters(), "none": ()})
    gradients.measure(torch.tensor(1.0))
    gradients.clip(0.5)
    gradients.clip_values(0.5)
    assert gradients.norms == {"layer": 0.0} and gradients.total == 0 and gradients.finite


def test_dropped_gradients_leave_parameters_and_state_of_the_optimizer():
    tower, head = two_parts()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.1, fused=True)
    loss = backward(tower, head)
    optimizer.step()
    state = [p.clone() for p in tower.parameters()], optimizer.state_dict()["state"][0]["step"].item()
    backward(tower, head)
    gradients = Gradients({"tower": tower.parameters(), "head": head.parameters()})
    gradients.measure(loss * math.nan)
    gradients.drop()
    optimizer.step()
    assert all(torch.equal(p, before) for p, before in zip(tower.parameters(), state[0], strict=True))
    assert optimizer.state_dict()["state"][0]["step"].item() == state[1]


def asked_to_stop(who: int) -> list[bool]:
    layer = nn.Linear(2, 2)
    gradients = Gradients({"layer": layer.parameters()})
    gradients.measure(LOSS, stop=False)
    before = gradients.stop
    gradients.measure(LOSS, stop=rank() == who)
    return [before, gradients.stop]


def test_all_ranks_know_that_one_was_asked_to_stop(pool):
    assert pool(3, asked_to_stop, 1) == [[False, True]] * 3


def test_measuring_a_small_model_costs_less_than_torchs_clipping():
    layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(20)])
    for parameter in layers.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = Gradients({"layers": layers.parameters()})
    loss = torch.tensor(1.0)

    def cost(step) -> float:
        started = time.process_time()
        for _ in range(100):
            step()
        return time.process_time() - started

    ours, theirs = [], []
    for _ in range(5):
        ours.append(cost(lambda: gradients.measure(loss)))
        theirs.append(cost(lambda: nn.utils.clip_grad_norm_(layers.parameters(), 1e9)))
    assert min(ours) < min(theirs)
