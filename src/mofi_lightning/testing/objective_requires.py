"""Whether an objective's `requires` is what it uses: no less, and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch

from mofi_lightning.testing import batches
from mofi_lightning.testing.batches import Rows
from mofi_lightning.testing.checks import last_line
from mofi_lightning.testing.objective_contract import FIELDS, Contract, listed


def honest_requires(contract: Contract) -> list[str]:
    """It works with no more than `requires` names, and uses all of that."""
    # where there are text tokens, there is a text
    given = contract.requires | ({"text"} if "text_tokens" in contract.requires else set())
    spec = dataclasses.replace(
        contract.spec,
        vocabulary=contract.spec.vocabulary if "entity" in given else None,
        text_feature_dim=contract.spec.text_feature_dim if "text" in given else None,
        teacher_dim=contract.spec.teacher_dim if "teacher" in given else None,
    )
    try:
        contract.build(spec=spec)
    except Exception as error:
        return [f"a spec with no more than `requires` names cannot build it: {last_line(error)}"]
    if not _undeclared(contract, FIELDS - given):
        return _unused(contract)
    errors = {field: _undeclared(contract, {field}) for field in sorted(FIELDS - given)}
    return [
        f"uses {field!r} but does not require it ({message}); name it in `requires`, or do without it"
        for field, message in errors.items()
        if message
    ] or [f"fails without {listed(FIELDS - given)}, which it does not require"]


def _undeclared(contract: Contract, fields: Collection[str]) -> str:
    """What goes wrong without `fields`."""
    try:
        loss = contract.run(batches.without(contract.rows, fields))
    except Exception as error:
        return last_line(error)
    return "" if torch.isfinite(loss) else f"the loss is {loss.item()}"


def _unused(contract: Contract) -> list[str]:
    """Required fields, of those without gradient, that the loss does not depend on."""
    embeddings, batch = contract.rows
    other = contract.batch(1)
    changed = {
        "entity": Rows(embeddings, {**batch, "entity": batch["entity"].roll(1)}),
        "teacher": Rows(dataclasses.replace(embeddings, teacher=other.embeddings.teacher), batch),
    }
    loss = contract.run(contract.rows)
    return [
        f"requires {field!r}, but the loss does not depend on it; drop it from `requires`"
        for field in sorted(contract.requires & changed.keys())
        if torch.equal(contract.run(changed[field]), loss)
    ]
