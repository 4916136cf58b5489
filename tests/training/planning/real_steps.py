"""Real training steps, measured, to which plans are compared."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from tests.training.runs import trainer
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from mofi_lightning.distributed import rank, world_size
from mofi_lightning.encoders.dual_encoder import DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.objectives import CLIP, MOFI, EntitySoftmax
from mofi_lightning.testing import synthetic_vocabulary
from mofi_lightning.training import Optimization, PretrainingModule
from mofi_lightning.training.planning.live_bytes import LiveBytes
from mofi_lightning.types import Batch, Tokens

VIT = DualEncoderConfig(
    "timm/vit_tiny_patch16_224",
    {"img_size": 64, "depth": 4, "embed_dim": 96},
    embed_dim=48,
    text=TextConfig(64, 3, 4, 24),
)
CONVNEXT = DualEncoderConfig("mofi/tiny", embed_dim=48, text=TextConfig(64, 3, 4, 24))


def clip_on_a_vit() -> PretrainingModule:
    return PretrainingModule(VIT, CLIP, Optimization(lr=1e-3), ema_decay=0.99)


def checkpointed_mofi() -> PretrainingModule:
    entity = functools.partial(EntitySoftmax, num_sampled=900)
    return PretrainingModule(
        VIT,
        functools.partial(MOFI, entity=entity),
        Optimization(lr=1e-3),
        activation_checkpointing=True,
    )


def sliced_mofi_on_a_convnext() -> PretrainingModule:
    return PretrainingModule(
        CONVNEXT,
        MOFI,
        Optimization(lr=1e-3, optimizer=functools.partial(torch.optim.SGD, momentum=0.9)),
        encode_slices=4,
    )


class FullRows(LightningDataModule):
    """Labelled rows of noise whose texts fill the context, the same in every step."""

    def __init__(self, rows: int, entities: int) -> None:
        super().__init__()
        self.rows, self.vocabulary = rows, synthetic_vocabulary(entities)
        self.fields = {"noise": frozenset({"image", "text", "entity"})}

    def use(self, preprocess: Any, tokenizer: Any, context_length: int) -> None:
        self.size, self.length = preprocess.size, context_length

    def train_dataloader(self) -> DataLoader[Batch]:
        generator = torch.Generator().manual_seed(1)
        image = torch.randint(256, (self.rows, 3, self.size, self.size), generator=generator)
        ids = torch.randint(3, 250, (self.rows, self.length), generator=generator)
        entity = torch.randint(len(self.vocabulary), (self.rows,), generator=generator)
        share = self.rows // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        batch: Batch = {
            "image": image[mine].to(torch.uint8).clone(),
            "text": Tokens(ids[mine].clone(), torch.ones_like(ids[mine])),
            "entity": entity[mine].clone(),
        }
        return DataLoader([batch] * 3, batch_size=None)  # type: ignore[arg-type]


class Measured(Callback):
    """The third step: what lives before it, and the most that lives during it."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            states = trainer.optimizers[0].state.values()
            held = {
                "parameters": list(pl_module.parameters()),
                "gradients": [p.grad for p in pl_module.parameters() if p.grad is not None],
                "optimizer state": [t for state in states for t in state.values() if torch.is_tensor(t)],
                "buffers": list(pl_module.buffers()),
            }
            # numbers only: a reference would keep the gradients alive
            self.held = {name: sum(map(own_bytes, tensors)) for name, tensors in held.items()}
            self.mode = LiveBytes()
            self.mode.hold(held | {"batch": [batch["image"], *batch["text"], batch["entity"]]})
            self.mode.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            self.mode.__exit__(None, None, None)


def measure(
    root: str, make: Any, rows: int, entities: int, precision: str = "32-true", replicate: int = 1
) -> tuple[dict[str, int], int]:
    """Bytes of the rank's own tensors by what they are for, and the most bytes alive in a step."""
    torch.manual_seed(0)
    measured = Measured()
    options = {"callbacks": [measured], "precision": precision, "gradient_clip_val": 1.0}
    run = trainer(Path(root), 3, replicate, **options)
    run.fit(make(), datamodule=FullRows(rows, entities))
    return measured.held, measured.mode.peak.total()


def own_bytes(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes
