"""Exponential moving average of the weights, kept where the weights are: each rank averages its own shards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mofi_lightning.types import InputError


class WeightAverage(nn.Module):
    """Average of parameters over steps; its buffers are sharded as the parameters are, and saved with them.

    After t updates the decay is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten
    (`tf.train.ExponentialMovingAverage`).

    Args:
        parameters: by their names in the training state; those that are trained.
        decay: share of the old average that is kept at each step, 0 <= decay < 1.

    Attributes:
        decay: the final one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay is {decay}; give a share of at least 0 and below 1, such as 0.9999")
        self.decay = decay
        self._parameters_of = dict(parameters)  # a dict of its own: they are not this module's parameters
        for name, parameter in parameters.items():
            self.register_buffer(name.replace(".", "/"), parameter.detach().clone())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after the optimizer's step number `step`, counted from 1."""
        averages, parameters = self._pairs()
        torch._foreach_lerp_(averages, parameters, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; twice is what was there before."""
        averages, parameters = self._pairs()
        for average, parameter in zip(averages, parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        names = self._parameters_of
        averages = [_local(self._buffers[name.replace(".", "/")]) for name in names]
        return averages, [_local(parameter.detach()) for parameter in names.values()]


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
