"""Short training runs that tests start on any number of ranks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.distributed.tensor import DTensor

from mofi_lightning.distributed import world_size
from mofi_lightning.encoders.dual_encoder import DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import (
    Evaluation,
    Optimization,
    PretrainingModule,
    ShardedStrategy,
    StepCheckpoint,
)
from mofi_lightning.training.single_process import SingleProcessStrategy

ENCODER = DualEncoderConfig(image="mofi/tiny", embed_dim=16, text=TextConfig(32, 1, 2, 32))
#: towers of three and two equal blocks
VIT = DualEncoderConfig(
    image="timm/vit_tiny_patch16_224",
    image_options={"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3},
    embed_dim=16,
    text=TextConfig(32, 2, 2, 32),
)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one process would hold it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def trainer(
    root: Path, max_steps: int, replicate: int | Literal["world", "nodes"] = 1, **options: Any
) -> Trainer:
    """A CPU trainer for the processes that the pool started."""
    ranks = world_size()
    return Trainer(
        accelerator="cpu",
        strategy=ShardedStrategy(replicate=replicate) if ranks > 1 else SingleProcessStrategy(),
        max_steps=max_steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "devices": ranks,
            "logger": False,
            "enable_checkpointing": False,
            "val_check_interval": 10**6,
            **options,
        },
    )


def module(num_sampled: int | None = 40) -> PretrainingModule:
    """MOFI on tiny encoders."""
    entity = functools.partial(EntitySoftmax, num_sampled=num_sampled)
    return PretrainingModule(
        ENCODER, functools.partial(MOFI, entity=entity), Optimization(lr=1e-3, warmup_steps=2)
    )


def recorded_losses(model: PretrainingModule) -> list[float]:
    """The list that the losses of the rank's steps will be appended to."""
    losses: list[float] = []
    original = model.training_step

    def record(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = original(batch, batch_idx)
        losses.append(loss.item())
        return loss

    model.training_step = record  # type: ignore[method-assign]
    return losses


def train_mofi(
    root: str,
    dtype: torch.dtype,
    steps: int,
    replicate: int = 1,
    checkpoint: str | None = None,
    stop: int = 0,
) -> dict[str, Any]:
    """Train and return every parameter and buffer, whole, and the losses of the rank.

    Args:
        root: of the run.
        dtype: default floating dtype.
        steps: length of the schedule.
        replicate: copies of the parameters.
        checkpoint: resumed from.
        stop: checkpoint after that many steps and end.
    """
    torch.set_default_dtype(dtype)
    try:
        model = module()
        run = trainer(
            Path(root),
            steps,
            replicate,
            gradient_clip_val=0.5,
            callbacks=[StepCheckpoint(stop), _Stop(stop)] if stop else None,
            enable_checkpointing=bool(stop),
        )
        losses = recorded_losses(model)
        seed_everything(3, verbose=False)
        run.fit(
            model,
            datamodule=SyntheticDataModule(rows=24, num_entities=101),
            ckpt_path=checkpoint,
            weights_only=True,
        )
        state = {name: whole(value) for name, value in model.state_dict().items()}
        return {"losses": losses, "state": state, "global_step": run.global_step}
    finally:
        torch.set_default_dtype(torch.float32)


def validate_mofi(root: str, data: str) -> dict[str, float]:
    """What one validation of a fresh model logs."""
    seed_everything(3, verbose=False)
    callback = Evaluation(Path(data))
    run = trainer(Path(root), 1, callbacks=[callback])
    run.validate(module(), datamodule=SyntheticDataModule(rows=24, num_entities=101), verbose=False)
    return {name: float(value) for name, value in run.logged_metrics.items()}


def train_vit(
    root: str,
    steps: int,
    replicate: int | Literal["world"] = 1,
    num_sampled: int | None = 40,
    slices: int = 1,
    checkpointing: bool = False,
) -> dict[str, Any]:
    """Train MOFI on transformers of several blocks in fp64, gradients clipped and weights averaged.

    Returns:
        `losses` of the rank and `state`: every parameter, average and buffer, whole.
    """
    torch.set_default_dtype(torch.float64)
    try:
        model = PretrainingModule(
            VIT,
            functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=num_sampled)),
            Optimization(lr=1e-3, warmup_steps=2),
            encode_slices=slices,
            activation_checkpointing=checkpointing,
            ema_decay=0.9,
        )
        losses = recorded_losses(model)
        seed_everything(3, verbose=False)
        run = trainer(Path(root), steps, replicate, gradient_clip_val=0.5)
        run.fit(model, datamodule=SyntheticDataModule(rows=24, num_entities=101))
        return {"losses": losses, "state": {name: whole(x) for name, x in model.state_dict().items()}}
    finally:
        torch.set_default_dtype(torch.float32)


def train_precision(root: str, steps: int, precision: Any) -> list[float]:
    """Losses of the rank's steps with the encoders in `precision`."""
    seed_everything(3, verbose=False)
    model = module()
    losses = recorded_losses(model)
    run = trainer(Path(root), steps, precision=precision)
    run.fit(model, datamodule=SyntheticDataModule(rows=24, num_entities=101))
    return losses


class _Stop(Callback):
    """Ends a run after some steps, as a user or a machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step
