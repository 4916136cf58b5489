"""Whether an objective on two processes gives the loss, the gradient and the state of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.distributed.parallelize import shard
from mofi_lightning.objectives.base import Objective, ObjectiveFactory
from mofi_lightning.testing import batches
from mofi_lightning.testing.batches import Rows
from mofi_lightning.testing.checks import close, isolated, seed_everything
from mofi_lightning.testing.processes import shared_processes
from mofi_lightning.types import ObjectiveOutput

WORLD = 2
LR_FACTOR = 0.5
_LR = 0.1

# where the labelled rows are
LAYOUTS: Mapping[str, Callable[[int], list[bool]]] = {
    "evenly": batches.half_labelled,
    "unevenly": batches.first_half_labelled,
}


class Step(NamedTuple):
    """One training step.

    Attributes:
        loss: this rank's.
        inputs: gradients of the embeddings of this rank's rows, by name; zeros where there is none.
        parameters: gradients of the parameters, whole, by name; zeros where there is none.
        state: the objective's state dict after the step, whole.
    """

    loss: Tensor
    inputs: dict[str, Tensor]
    parameters: dict[str, Tensor]
    state: dict[str, Tensor]


class Trace(NamedTuple):
    """The state dict before training, the steps, and after them this rank's loss in eval mode."""

    start: dict[str, Tensor]
    steps: list[Step]
    validation: Tensor


def train(objective: Objective, data: Sequence[Rows]) -> list[Step]:
    """One step of SGD on each of the batches, then what no optimizer holds."""
    parameters = dict(objective.named_parameters())
    optimizer = torch.optim.SGD([*parameters.values(), torch.zeros(1)], lr=_LR)
    steps = []
    for rows in data:
        rows, made = batches.leaves(rows)
        output: ObjectiveOutput = objective(*rows)
        optimizer.zero_grad()
        output.loss.backward()
        inputs = {name: _gradient(x) for name, x in made.items()}
        gradients = {name: _gradient(x) for name, x in parameters.items()}
        optimizer.step()
        objective.after_optimizer_step(LR_FACTOR)
        steps.append(Step(output.loss.detach(), inputs, gradients, whole_state(objective)))
    return steps


def whole_state(objective: Objective) -> dict[str, Tensor]:
    """A copy of the state dict, with sharded tensors put together."""
    state = objective.state_dict()
    return {name: _whole(x).clone() for name, x in state.items() if isinstance(x, Tensor)}


def differences(factory: ObjectiveFactory, num_entities: int, rows: int, embed_dim: int) -> list[str]:
    """What two processes make of a batch otherwise than one, and the likely fault; empty if nothing."""
    work = (factory, num_entities, rows, embed_dim)
    try:
        ranks = shared_processes()(WORLD, _traces, *work)
    except RuntimeError as error:
        return [_failure(str(error))]
    one = _traces(*work)
    loss = {layout: _loss_differs([r[layout] for r in ranks], one[layout]) for layout in LAYOUTS}
    if loss["unevenly"] and not loss["evenly"]:
        return [
            f"{loss['unevenly']}, though only where the labelled rows are spread unevenly: a mean over the "
            "rank's own rows instead of the global ones; use distributed.global_mean"
        ]
    if loss["evenly"]:
        return [
            f"{loss['evenly']}: a rank does not see the others' rows, or not as one process does; compare "
            "with distributed.gather(...) and gather_labels(...), and take means with distributed.global_mean"
        ]
    for layout in LAYOUTS:
        found = _first_difference([r[layout] for r in ranks], one[layout])
        if found:
            return [found]
    for layout in LAYOUTS:
        mean = torch.stack([r[layout].validation for r in ranks]).mean()
        if not close(mean, one[layout].validation):
            return [
                f"training is right, but in eval mode the mean of the ranks' losses is {mean:.6g}, the loss "
                f"of one process {one[layout].validation:.6g}; gather and take means as in training"
            ]
    return []


def _traces(factory: ObjectiveFactory, num_entities: int, rows: int, embed_dim: int) -> dict[str, Trace]:
    """Two steps and a validation in fp64 on this rank's share of each layout's rows."""
    share = rows // world_size()
    own = torch.arange(rank() * share, (rank() + 1) * share)
    traces = {}
    with isolated(torch.float64):
        for layout, labelled in LAYOUTS.items():
            spec = batches.synthetic_spec(num_entities, embed_dim)
            data = [batches.random_rows(spec, labelled(rows), seed) for seed in (0, 1)]
            seed_everything(0)
            objective = factory(spec).double()
            if world_size() > 1:
                mesh = init_device_mesh("cpu", (world_size(),))
                shard([], objective, mesh, mesh, bf16=False)
            start = whole_state(objective)
            data = [batches.take(r, own) for r in data]
            steps = train(objective, data)
            with torch.no_grad():
                output: ObjectiveOutput = objective.eval()(*batches.leaves(data[0])[0])
            traces[layout] = Trace(start, steps, output.loss)
    return traces


def _loss_differs(ranks: list[Trace], one: Trace) -> str:
    mean = torch.stack([r.steps[0].loss for r in ranks]).mean()
    expected = one.steps[0].loss
    if close(mean, expected):
        return ""
    return f"the mean of the ranks' losses is {mean:.6g}, the loss of one process {expected:.6g}"


def _first_difference(ranks: list[Trace], one: Trace) -> str:
    """The first difference of the start, the gradients, the state and, in the second step, all of them."""
    for r in ranks:
        if name := _differing(r.start, one.start):
            return (
                f"{name!r} of the state dict starts unlike on one process: it must not depend on rank or "
                "number of ranks"
            )
    for number, expected in enumerate(one.steps):
        steps = [r.steps[number] for r in ranks]
        after = " in the second step, after the state was equal" if number else ""
        if not close(torch.stack([s.loss for s in steps]).mean(), expected.loss):
            return f"the loss differs{after}: something is kept outside of the state dict"
        inputs = {name: _joined([s.inputs[name] for s in steps], x) for name, x in expected.inputs.items()}
        if name := _differing(inputs, expected.inputs):
            return (
                f"the loss is right, the gradient of embeddings.{name} is not"
                f"{_ratio(inputs[name], expected.inputs[name])}: something is gathered without its gradient; "
                "use distributed.gather (and scale_gradient around what all ranks compute with all_reduce)"
            )
        for s in steps:
            if name := _differing(s.parameters, expected.parameters):
                return (
                    f"the loss is right, the gradient of parameter {name!r} is not"
                    f"{_ratio(s.parameters[name], expected.parameters[name])}: data parallelism takes the "
                    "mean over ranks, so what all ranks compute with all_reduce needs scale_gradient"
                )
            if name := _differing(s.state, expected.state):
                return (
                    f"loss and gradient are right, {name!r} of the state dict is not after the step: what "
                    "after_optimizer_step or forward does to it depends on the number of ranks"
                )
    return ""


def _joined(parts: list[Tensor], expected: Tensor) -> Tensor:
    """The ranks' gradients of their rows, as data parallelism averages them; a token axis padded."""
    if expected.ndim == 3:
        pad = expected.shape[1]
        parts = [torch.nn.functional.pad(x, (0, 0, 0, pad - x.shape[1])) for x in parts]
    return torch.cat(parts) / len(parts)


def _differing(value: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first name under which the two are not close; empty if there is none."""
    names = [*expected, *(value.keys() - expected.keys())]
    return next(
        (n for n in names if n not in value or n not in expected or not close(value[n], expected[n])), ""
    )


def _ratio(value: Tensor, expected: Tensor) -> str:
    """` (it is 0.5 times that of one process)`, where it is a multiple."""
    if value.shape != expected.shape or not expected.abs().max() > 0:
        return ""
    factor = float((value * expected).sum() / (expected * expected).sum())
    return f" (it is {factor:.3g} times that of one process)" if close(value, factor * expected) else ""


def _failure(message: str) -> str:
    """The ranks' own last lines: those of the others' broken connections only if there is nothing else."""
    chunks = re.split(r"^(?=rank \d+ of \d+: |no answer from rank)", message, flags=re.MULTILINE)
    lines = []
    for chunk in filter(None, chunks):
        head = re.match(r"rank \d+ of \d+|no answer from rank.*", chunk)
        last = chunk.strip().splitlines()[-1].strip()
        lines.append(f"{head[0]}: {last}" if head and head[0] != last else last)
    waited = re.compile(r"no answer|[Tt]imed out|[Cc]onnection (closed|reset)|the process died")
    causes = [line for line in lines if not waited.search(line)]
    if causes:
        return "; ".join(causes)
    return (
        f"{'; '.join(lines)}: a rank waits for another; every rank must join every collective, "
        "with or without labelled rows"
    )


def _whole(x: Tensor) -> Tensor:
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def _gradient(x: Tensor) -> Tensor:
    return torch.zeros_like(_whole(x)) if x.grad is None else _whole(x.grad).clone()
