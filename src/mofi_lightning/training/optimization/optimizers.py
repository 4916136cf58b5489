"""AdamW and any other optimizer, made so that groups, schedule and skipped steps mean what they say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mofi_lightning.types import InputError

Groups = list[dict[str, Any]]

_FUSED = ("cpu", "cuda")
# torch 2.14's fail on DTensors at their first step
_WHOLE_ONLY = (torch.optim.Adafactor, torch.optim.Rprop)


def adamw(groups: Groups, lr: float, betas: tuple[float, float], eps: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), fused where it can be."""
    parameters = [p for group in groups for p in group["params"]]
    # torch itself finds out only at the first step; without fused it takes foreach where it can
    fused = all(p.is_floating_point() and p.device.type in _FUSED for p in parameters)
    return torch.optim.AdamW(groups, lr, betas, eps, fused=fused or None)


def checked(
    make: Callable[[Iterable[Any]], Optimizer], groups: Groups, lr: float, weight_decay: float
) -> Optimizer:
    """The optimizer that `make` makes of `groups`.

    Args:
        make: an optimizer class, or one with some of its arguments.
        groups: with their `lr` and `weight_decay`.
        lr: peak rate, that `make` must not set otherwise.
        weight_decay: likewise.

    Raises:
        InputError: it refuses the parameters, cannot train them, or does not do as it is told.
    """
    try:
        optimizer = make(groups)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model.optimization.optimizer does not work for this model: {error}; choose another class"
        ) from error
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise InputError(f"optimizer {name} is for sparse gradients, and there are none; use Adam")
    is_sharded = any(isinstance(p, DTensor) for group in groups for p in group["params"])
    if is_sharded and isinstance(optimizer, _WHOLE_ONLY):
        raise InputError(
            f"optimizer {name} does not work on parameters that are sharded over processes; use AdamW, or "
            "one process"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"optimizer {name} evaluates a step several times, which skipping, clipping and the entity table "
            "do not allow for; choose one that evaluates it once"
        )
    _refuse_other(optimizer, "lr", lr)
    _refuse_other(optimizer, "weight_decay", weight_decay)
    return optimizer


def _refuse_other(optimizer: Optimizer, setting: str, own: float) -> None:
    """Refuse an optimizer without the setting, and one that was given another value than the groups."""
    name = type(optimizer).__name__
    if setting not in optimizer.defaults:
        if own:
            raise InputError(
                f"optimizer {name} has no {setting}, and optimization.{setting} is {own}; choose another "
                f"class{', or set it to 0' if setting == 'weight_decay' else ''}"
            )
        return
    given = optimizer.defaults[setting]
    argument = inspect.signature(type(optimizer)).parameters.get(setting)
    if argument is not None and given not in (argument.default, own):
        raise InputError(
            f"optimization.optimizer.{setting} is {given} and optimization.{setting} {own}, which holds for "
            "any optimizer; set only the latter"
        )


def keep_settings(optimizer: Optimizer) -> None:
    """Let `load_state_dict` bring state only: the settings are the configuration's, not the checkpoint's.

    Settings are what the class is made with; anything else that an optimizer keeps in its groups is state.
    """
    arguments = {*inspect.signature(type(optimizer)).parameters, "name"} - {"params"}
    own = [{key: group[key] for key in arguments & group.keys()} for group in optimizer.param_groups]

    def take_own(optimizer: Optimizer) -> None:
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings, initial_lr=settings["lr"])

    optimizer.register_load_state_dict_post_hook(take_own)
