"""Warm starts: weights of another run as a start, and what of a model is kept as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.objectives.base import Objective
from mofi_lightning.training.entity_tables import grow_tables
from mofi_lightning.training.patterns import matching
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.data.vocabulary import EntityVocabulary

_SHOWN = 3
_STATISTICS = ("image.mean", "image.std")  # of the preprocessing, which the configuration decides


def initialise(
    model: DualEncoder, objective: Objective, path: str, vocabulary: EntityVocabulary | None
) -> str:
    """Take the weights of the same names and shapes from a trained model, and the rows of its entity table.

    The rest of the objective and the optimizer start anew.

    Args:
        model: receives the weights.
        objective: whose map into a label space continues where both have one, and whose entity tables get the
            rows of a checkpoint's, by entity id (`entity_tables.grow_tables`); it is not sharded yet.
        path: a model folder, the folder of a run, or a checkpoint, which alone holds a table.
        vocabulary: of the data set.

    Returns:
        What was taken, what kept its own start and what had no use, for the user.

    Raises:
        InputError: there is no model, nothing of it fits, or it has a table whose vocabulary is not there.
    """
    stored = checkpoint.read(Path(path))
    label_space = objective.label_space()
    weights = {name: value for name, value in stored.weights.items() if name not in _STATISTICS}
    own: dict[str, Tensor] = {n: value for n, value in model.state_dict().items() if n not in _STATISTICS}
    if label_space is not None and stored.label_space == asdict(label_space.config):
        own |= {f"label_space.{name}": value for name, value in label_space.state_dict().items()}
    shared = own.keys() & weights.keys()
    fitting = [name for name in own if name in shared and own[name].shape == weights[name].shape]
    other_shape = [
        f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in shared and own[name].shape != weights[name].shape
    ]
    if not fitting:
        raise InputError(
            f"init_from {path!r}: none of its {len(weights)} tensors fits this model; its first is "
            f"{next(iter(weights), 'none')!r}, this model's is {next(iter(own))!r}"
        )
    if model.tokenizer is not None and stored.tokenizer is not None:
        same = json.loads(stored.tokenizer) == json.loads(model.tokenizer.to_json())
    else:
        same = True
    if not same:
        raise InputError(
            f"init_from {path!r} has another tokenizer than this model; set model.encoder.tokenizer to "
            "that of its folder (tokenizer.json)"
        )
    tables = grow_tables(objective, Path(path), vocabulary)
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(weights[name])
    parts = [f"init_from {path}: {len(fitting)} of {len(own)} tensors taken"]
    for what, names in (
        ("missing there, keep their start", [name for name in own if name not in weights]),
        ("of another shape, keep their start", other_shape),
        ("unexpected, left out", [name for name in weights if name not in own]),
    ):
        if names:
            more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}")
    return "\n  ".join(parts + tables)


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Let the parameters whose names match one of the shell `patterns` keep their values.

    Modules whose parameters are all frozen are put into evaluation mode (`keep_frozen_in_eval`).

    Args:
        module: its parameters are called, for instance, `model.image.encoder.blocks.0.norm.weight`.
        patterns: `*` matches dots too; `model.image.*` is the whole image tower.

    Raises:
        InputError: a pattern matches nothing, or nothing would be left to train.
    """
    parameters = dict(module.named_parameters())
    for pattern in patterns:
        for name in matching(parameters, pattern, "freeze"):
            parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"freeze {list(patterns)} leaves no parameter to train; freeze less")
    keep_frozen_in_eval(module)


def keep_frozen_in_eval(module: nn.Module) -> None:
    """Put modules all of whose parameters are frozen into evaluation mode: no dropout, no batch statistics.

    An objective itself never is: frozen or not, it trains what is no parameter (the entity table, its draws).
    """
    parameters = list(module.parameters())
    frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    if frozen and not any(isinstance(part, Objective) for part in module.modules()):
        module.eval()
        return
    for child in module.children():
        keep_frozen_in_eval(child)
