"""Runs that are cut and resumed, on any number of ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from tests.training.runs import ENCODER, recorded_losses, trainer, whole

from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule, StepCheckpoint

STEPS = 6


class StopAt(Callback):
    """Ends a run after some steps, as a user would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


class Scores(Callback):
    """Logs `val/score` at each validation; one more validation a score."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = list(scores)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log("val/score", self.scores[trainer.global_step // 2 - 1])


def data() -> SyntheticDataModule:
    """24 rows a step, a function of the step."""
    return SyntheticDataModule(rows=24, num_entities=101)


def model(optimizer: Callable[..., Any] | None = None, **options: Any) -> PretrainingModule:
    """MOFI on tiny encoders, averaged."""
    objective = functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=40))
    optimization = Optimization(lr=1e-3, warmup_steps=2, optimizer=optimizer)
    return PretrainingModule(
        ENCODER, objective, **{"optimization": optimization, "ema_decay": 0.9, **options}
    )


def train(
    root: Path,
    replicate: int = 1,
    resume: Path | None = None,
    stop: int = 0,
    module: PretrainingModule | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> dict[str, Any]:
    """Train in fp64, and return the losses of the rank and the state, whole.

    Args:
        root: of the run.
        replicate: copies of the parameters.
        resume: checkpoint that the run goes on from.
        stop: save and end after that many steps.
        module: another one than `model()`.
        callbacks: in place of the one that saves at `stop`.
        options: of the trainer.
    """
    torch.set_default_dtype(torch.float64)
    try:
        module = module or model()
        if stop:
            callbacks = [*(callbacks or [StepCheckpoint(stop)]), StopAt(stop)]
        options = {"gradient_clip_val": 0.5, "enable_checkpointing": bool(callbacks), **options}
        run = trainer(root, STEPS, replicate, callbacks=list(callbacks), **options)
        losses = recorded_losses(module)
        seed_everything(3, verbose=False)
        run.fit(module, datamodule=data(), ckpt_path=resume, weights_only=True)
        state = {name: whole(value) for name, value in module.state_dict().items()}
        names = {parameter: name for name, parameter in module.named_parameters()}
        for parameter, values in run.optimizers[0].state.items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor):
                    state[f"optimizer {names[parameter]} {key}"] = whole(value)
        return {"losses": losses, "state": state, "step": run.global_step}
    finally:
        torch.set_default_dtype(torch.float32)
