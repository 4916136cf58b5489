"""Exponential moving average of the weights, sharded as they are: each rank averages what it holds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mofi_lightning.types import InputError


class WeightAverage(nn.Module):
    """Average of parameters over steps; its buffers are sharded as the parameters are, and saved with them.

    At step t, counted from 1, the decay is min(decay, (1 + t) / (10 + t)), so that the random start is soon
    forgotten (`tf.train.ExponentialMovingAverage`). Buffers are not averaged: a BatchNorm keeps its running
    statistics, which are those of the weights themselves.

    Args:
        parameters: by their names in the training state; those that are trained.
        decay: share of the old average that is kept at each step, 0 <= decay < 1.

    Attributes:
        decay: the final one.
        in_use: whether the parameters are their averages at present.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay is {decay}; give a share of at least 0 and below 1, such as 0.9999")
        self.decay = decay
        self.in_use = False
        self._units: list[FSDPModule] = []
        self._parameters_of = dict(parameters)  # a dict of its own: they are not this module's parameters
        for name, parameter in parameters.items():
            self.register_buffer(_buffer(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after the optimizer's step number `step`, counted from 1."""
        averages, parameters = self._pairs()
        torch._foreach_lerp_(averages, parameters, 1 - min(self.decay, (1 + step) / (10 + step)))

    def use(self) -> None:
        """Let the parameters be their averages until `restore()`."""
        if not self.in_use:
            self._swap()

    def restore(self) -> None:
        """Let the parameters be themselves again, bit for bit."""
        if self.in_use:
            self._swap()

    def keep_state_in_order(self, module: nn.Module) -> None:
        """Let a state dict of `module` hold parameters and averages under their own names, in use or not.

        So no checkpoint can mistake one for the other, at whatever moment it is written; and what FSDP has
        gathered of `module` is never of the one while the other is in use.

        Args:
            module: holds the parameters under their names, and this average as `average`; if it is going to
                be sharded, it is already.
        """
        self._units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
        exchange = functools.partial(self._exchange_entries)  # torch marks the hook, which no method allows
        module.register_state_dict_post_hook(exchange)
        module.register_load_state_dict_pre_hook(exchange)

    @torch.no_grad()
    def _swap(self) -> None:
        # after a forward without gradients FSDP keeps the gathered parameters of its roots, and the next
        # forward would compute with these instead of what the shards are by then
        for unit in self._units:
            unit.reshard()
        # one after the other: needs the memory of the largest tensor, not of a second model
        for average, parameter in zip(*self._pairs(), strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)
        self.in_use = not self.in_use

    def _exchange_entries(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if not self.in_use:
            return
        for name in self._parameters_of:
            weight, average = f"{prefix}{name}", f"{prefix}average.{_buffer(name)}"
            if weight in state and average in state:
                state[weight], state[average] = state[average], state[weight]

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        averages = [_local(self._buffers[_buffer(name)]) for name in self._parameters_of]
        return averages, [_local(parameter.detach()) for parameter in self._parameters_of.values()]


class ValidateAverage(Callback):
    """Validates the module's average in place of its weights; they are back in place even after an error."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use the average."""
        _average(pl_module).use()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train on with the weights themselves."""
        _average(pl_module).restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the weights themselves."""
        average = getattr(pl_module, "average", None)  # there is none where the model could not be built
        if average is not None:
            average.restore()


def _average(module: LightningModule) -> WeightAverage:
    average = module.average
    assert isinstance(average, WeightAverage)
    return average


def _buffer(name: str) -> str:
    return name.replace(".", "/")


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
