"""A training step on pretended ranks, without memory: what it holds, makes, computes and sends."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from mofi_lightning.distributed.parallelize import shard
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.objectives import EntitySoftmax
from mofi_lightning.training.module import PretrainingModule
from mofi_lightning.training.optimization.averaging import WeightAverage
from mofi_lightning.training.planning.live_bytes import GRADIENTS, local
from mofi_lightning.training.planning.weightless import Weightless, drop_memory
from mofi_lightning.types import Batch, InputError, Tokens, Vocabulary

PARAMETERS, OPTIMIZER = "parameters", "optimizer state"
AVERAGE, TABLE, BUFFERS, BATCH = "average (EMA)", "entity table", "other buffers", "batch"


@dataclass(frozen=True)
class Step:
    """What one training step of one rank takes.

    Attributes:
        parts: parameters of image tower, text tower and objective, whole: numbers, not bytes.
        held: bytes that the rank keeps between steps, by what they are for.
        total: the same, summed over the ranks; a copy of the parameters counts as often as it exists.
        peak: bytes alive when most are, by what they are for.
        received: bytes from other ranks in a step, by what is sent, kind of collective and number of ranks.
        flops: operations in a step, with what checkpointing and slices compute again.
    """

    parts: dict[str, int]
    held: Counter[str]
    total: Counter[str]
    peak: Counter[str]
    received: Counter[tuple[str, str, int]]
    flops: int


class Rehearsal:
    """A `PretrainingModule` on pretended ranks, built once; its steps take any number of rows.

    Use within `pretended_ranks(world)` and `mode`. FSDP, activation checkpointing, slices, autocast,
    clipping, the optimizer and the entity table's update are the real ones; compiled blocks are rehearsed as
    they are written.

    Args:
        module: not yet configured.
        vocabulary: gives the number of entities.
        tokenizer: gives the number of token ids.
        world: number of ranks.
        replicas: copies of the parameters among them.
        bf16: whether the encoders compute in bf16 (trainer.precision bf16-mixed).
        clip: of the trainer: the largest norm of the gradient, or None.
    """

    def __init__(
        self,
        module: PretrainingModule,
        vocabulary: Vocabulary | None,
        tokenizer: Tokenizer | None,
        mode: Weightless,
        world: int,
        replicas: int,
        bf16: bool,
        clip: float | None,
    ) -> None:
        self.module, self.mode, self.world, self.clip = module, mode, world, clip
        self.bf16 = bf16
        self.entities = len(vocabulary or ())
        module.compile_blocks = False
        try:
            module.build(vocabulary, tokenizer)
        except InputError as error:
            if vocabulary is None and "entities" in str(error):
                raise InputError(f"{error}; for a plan give their number, --entities N") from error
            raise
        drop_memory(module, mode)
        self.parts = _parts(module)
        self.token_ids = 0 if module.model.tokenizer is None else module.model.tokenizer.vocab_size
        module.freeze_parameters()
        module.transform_blocks()
        if dist.is_initialized():
            everyone = init_device_mesh("cpu", (world,), mesh_dim_names=("world",))
            grid = (replicas, world // replicas)
            mesh = (
                init_device_mesh("cpu", grid, mesh_dim_names=("replicate", "shard"))
                if replicas > 1
                else everyone
            )
            shard(module.towers(), module.objective, mesh, everyone, self.bf16)
        trained = {name: p for name, p in module.exported_parameters().items() if p.requires_grad}
        module.average = None if module.ema_decay is None else WeightAverage(trained, module.ema_decay)
        # all that `configure_optimizers` asks of a trainer
        module._trainer = SimpleNamespace(max_steps=1, strategy=SimpleNamespace(replicas=replicas))  # type: ignore[assignment]
        self.optimizer: Optimizer = module.configure_optimizers()["optimizer"]
        module.train()
        self.take(min(2, module.encode_slices))  # makes gradients and optimizer state

    def take(self, rows: int) -> Step:
        """One step on `rows` rows of this rank."""
        mode = self.mode
        batch = self._batch(rows)
        mode.rename(BATCH, tree_leaves(batch))
        for name, tensors in self._held().items():
            mode.rename(name, tensors)
        mode.flops = 0
        mode.received.clear()
        mode.start()
        self._step(batch)
        held = self._held()
        return Step(
            self.parts,
            Counter({name: sum(local(t).nbytes for t in tensors) for name, tensors in held.items()}),
            Counter({name: sum(map(self._on_all_ranks, tensors)) for name, tensors in held.items()}),
            +mode.peak,
            Counter(mode.received),
            mode.flops,
        )

    def _batch(self, rows: int) -> Batch:
        size, text = self.module.model.preprocess.size, self.module.model.text
        batch: Batch = {"image": torch.empty(rows, 3, size, size).to(torch.uint8)}
        if text is not None:
            shape = (rows, text.encoder.context_length)
            ids = torch.randint(self.token_ids, shape, dtype=torch.int64)
            batch["text"] = Tokens(ids, torch.ones(shape, dtype=torch.int64))
        if self.entities:
            batch["entity"] = torch.randint(self.entities, (rows,), dtype=torch.int64)
        return batch

    def _step(self, batch: Batch) -> None:
        """What Lightning's automatic optimisation does, in its order."""
        module = self.module
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = module(batch).loss
        self.optimizer.zero_grad()
        loss.backward()
        module._loss = loss.detach()
        module.configure_gradient_clipping(self.optimizer, self.clip)
        self.optimizer.step()
        module.objective.after_optimizer_step(1.0)
        if module.average is not None:
            module.average.update(1)

    def _held(self) -> dict[str, list[Tensor]]:
        """Tensors that live from step to step, by what they are for."""
        module = self.module
        tables = {
            id(t): t
            for part in module.objective.modules()
            if isinstance(part, EntitySoftmax)
            for t in (part.table, part.second_moment)
        }
        average = [] if module.average is None else list(module.average.buffers())
        named = tables.keys() | set(map(id, average))
        return {
            PARAMETERS: list(module.parameters()),
            GRADIENTS: [p.grad for p in module.parameters() if p.grad is not None],
            OPTIMIZER: [t for t in tree_leaves(list(self.optimizer.state.values())) if isinstance(t, Tensor)],
            AVERAGE: average,
            TABLE: list(tables.values()),
            BUFFERS: [b for b in module.buffers() if id(b) not in named],
        }

    def _on_all_ranks(self, tensor: Tensor) -> int:
        if not isinstance(tensor, DTensor):
            return tensor.nbytes * self.world
        copies = [
            n for n, p in zip(tensor.device_mesh.shape, tensor.placements, strict=True) if p.is_replicate()
        ]
        return tensor.numel() * tensor.element_size() * math.prod(copies)


def _parts(module: PretrainingModule) -> dict[str, int]:
    model = module.model
    parts = {
        "image": model.image,
        "text": model.text,
        "objective": module.objective,
        "teacher": module.teacher,
    }
    return {
        name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None
    }
