"""A few training steps of an objective on toy encoders, on one process or on this rank's rows of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.objectives import ObjectiveFactory
from mofi_lightning.types import Batch, Embeddings, ObjectiveSpec

DIM = 4


@dataclass
class Entities:
    """A vocabulary of `E0`, `E1`, ..."""

    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def ids(self) -> list[str]:
        return [f"E{i}" for i in range(self.size)]

    names = ids

    @property
    def descriptions(self) -> list[str]:
        return [""] * self.size

    @property
    def counts(self) -> list[int]:
        return [1] * self.size


class Trace(NamedTuple):
    """What the steps left: the rank's losses and logs, the encoders' weights, the whole objective."""

    losses: Tensor
    logs: dict[str, Tensor]
    weights: list[Tensor]
    objective: dict[str, Tensor]


def spec(num_entities: int) -> ObjectiveSpec:
    return ObjectiveSpec(embed_dim=DIM, feature_dim=DIM, vocabulary=Entities(num_entities))


def train(make: ObjectiveFactory, num_entities: int, entity: list[int], steps: int = 3) -> Trace:
    """Train in fp64 with SGD; a rank takes its equal share of the rows of `entity`."""
    torch.set_default_dtype(torch.float64)
    try:
        return _train(make, num_entities, torch.tensor(entity), steps)
    finally:
        torch.set_default_dtype(torch.float32)


def _train(make: ObjectiveFactory, num_entities: int, entity: Tensor, steps: int) -> Trace:
    torch.manual_seed(0)
    objective = make(spec(num_entities))
    if world_size() > 1:
        mesh = init_device_mesh("cpu", (world_size(),))
        objective.shard(mesh)
        if any(True for _ in objective.parameters()):
            fully_shard(objective, mesh=mesh)
    weights = [torch.randn(6, DIM).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.SGD([*weights, *objective.parameters()], lr=0.3)
    share = len(entity) // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    losses, logs = [], {}
    for _ in range(steps):
        inputs = torch.randn(2, len(entity), 6)[:, own]
        image, text = (F.normalize(x @ w, dim=1) for x, w in zip(inputs, weights, strict=True))
        output = objective(Embeddings(image=image, text=text), Batch(entity=entity[own]))
        optimizer.zero_grad()
        output.loss.backward()
        for weight in weights:
            if weight.grad is not None and world_size() > 1:  # what data parallelism does
                dist.all_reduce(weight.grad)
                weight.grad /= world_size()
        optimizer.step()
        objective.after_optimizer_step(0.5)
        losses.append(output.loss.detach())
        logs = dict(output.logs)
    state = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in objective.state_dict().items()}
    return Trace(torch.stack(losses), logs, [w.detach() for w in weights], state)


def assert_same(ranks: list[Trace], one: Trace) -> None:
    """The mean of the ranks' losses and logs, and every weight on every rank, are those of one process."""
    close = torch.testing.assert_close
    close(torch.stack([r.losses for r in ranks]).mean(0), one.losses)
    for name, value in one.logs.items():
        close(torch.stack([r.logs[name] for r in ranks]).mean(0), value, check_dtype=False)
    for r in ranks:
        close(r.weights, one.weights)
        close(r.objective, one.objective)
