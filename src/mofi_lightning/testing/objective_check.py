"""The kit for objectives: one call that tells whether one is right."""

from __future__ import annotations

from dataclasses import dataclass

from mofi_lightning.distributed import world_size
from mofi_lightning.objectives.base import ObjectiveFactory
from mofi_lightning.testing import batches, two_processes
from mofi_lightning.testing.checks import Findings, isolated
from mofi_lightning.testing.largest_tensor import LargestTensor, TensorWatch
from mofi_lightning.testing.objective_contract import Contract
from mofi_lightning.testing.objective_requires import honest_requires
from mofi_lightning.types import InputError, ObjectiveOutput

_MANY_ROWS = 2048


@dataclass(frozen=True)
class ObjectiveReport:
    """What `check_objective` found in order.

    Attributes:
        name: class of the objective.
        requires: the fields it cannot do without.
        checks: names of the checks it passed.
        largest: the largest tensor that it makes for a batch of 2,048 rows.
    """

    name: str
    requires: frozenset[str]
    checks: tuple[str, ...]
    largest: LargestTensor

    def __str__(self) -> str:
        requires = ", ".join(sorted(self.requires)) or "nothing but images"
        return (
            f"{self.name} (requires {requires}) passes {len(self.checks)} checks: {', '.join(self.checks)}\n"
            f"largest tensor: {self.largest}"
        )


def check_objective(
    factory: ObjectiveFactory, *, num_entities: int = 12, rows: int = 16, embed_dim: int = 8
) -> ObjectiveReport:
    """Check that an objective keeps to the contract of `Objective`.

    It trains a few steps on random embeddings and validates, on one process and on two (warm ones, shared by
    all calls; the objective is sharded on them as in training). Two processes are what is checked: a fault
    that only a third shows, such as a wrong offset of its rows, passes. Whatever the objective itself sets at
    random must come from torch's global generator while it is built, and from a saved counter later. It may
    not change the batch or the embeddings in place. Where no row has an entity, its gradients must be finite;
    if it requires 'entity' but no text, text tokens or teacher, its loss and gradients must be 0 there. Of
    the fields of `Embeddings`, `image`, `text` and `teacher` are at least fp32; features and tokens come in
    bf16 where encoders compute in it.

    Args:
        factory: makes the objective from the spec: its class, or a `functools.partial` of it.
        num_entities: entities of the spec's vocabulary, named `S000000`, `S000001`, ...; at least 6.
        rows: of the global batch, a multiple of 4 and at least 8.
        embed_dim: D.

    Returns:
        What was checked, and the largest tensor the objective makes; printable.

    Raises:
        AssertionError: something is wrong; the message has a line for each finding, with the way out.
        InputError: the sizes are of no use, or this is one of several processes.
    """
    if rows < 8 or rows % 4 or num_entities < 6:
        raise InputError(
            f"check_objective with rows={rows}, num_entities={num_entities}: give a multiple of 4 of at "
            "least 8 rows, and at least 6 entities"
        )
    if world_size() > 1:
        raise InputError("check_objective starts its own processes; call it in one without a process group")
    with isolated():
        return _check(Contract(factory, num_entities, rows, embed_dim))


def _check(contract: Contract) -> ObjectiveReport:
    findings = Findings()
    # what follows means nothing where one of these fails
    for name, check in (("contract", contract.kind), ("loss", contract.loss), ("fp64", contract.fp64)):
        if not findings.run(name, check):
            findings.raise_if_any(f"objective {contract.name!r}")
    findings.run("gradients", contract.gradients)
    findings.run("requires", lambda: honest_requires(contract))
    # losses that chance decides cannot be compared
    repeatable = findings.run("random numbers", contract.random_numbers)
    if repeatable:
        findings.run("order of the rows", contract.order)
    findings.run("no labelled rows", contract.no_labelled_rows)
    findings.run("bf16", contract.bf16)
    findings.run("validation", contract.validation)
    findings.run("state dict", contract.state_dict)
    # the ranks pad as they must
    if repeatable and findings.run("padding", contract.padding):
        findings.run("two processes", lambda: two_processes.differences(contract.factory, *contract.sizes))
    findings.raise_if_any(f"objective {contract.name!r}")
    return ObjectiveReport(contract.name, contract.requires, tuple(findings.checked), _largest(contract))


def _largest(contract: Contract) -> LargestTensor:
    rows = batches.random_rows(contract.spec, batches.half_labelled(_MANY_ROWS), seed=0)
    rows, _ = batches.leaves(rows)
    objective = contract.build()
    with TensorWatch(_MANY_ROWS) as watch:
        output: ObjectiveOutput = objective(*rows)
        watch.stage = "backward"
        output.loss.backward()
    return watch.largest
