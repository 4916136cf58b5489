"""What training costs beside the maths of its step: CPU time of Trainer, logging and callbacks.

A toy step is trained by the Trainer as `mofi fit` sets it up (its strategy and default callbacks, but no
checkpoints; CSV logger, clipping), by a loop of a few lines that does the same maths, by a Trainer with
nothing added, and by one whose module logs eight values a step with `self.log`. One thread; time is the
process's, so that what other processes do meanwhile counts little.
"""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from data_costs.rounds import in_turn
from mofi_lightning.encoders.base import EncoderOutput, ImageEncoder, TextEncoder
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.encoders.towers import ImageTower, TextTower
from mofi_lightning.objectives import MOFI
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule
from mofi_lightning.training.defaults import default_callbacks, quiet
from mofi_lightning.training.single_process import SingleProcessStrategy
from mofi_lightning.types import Batch, ObjectiveSpec

STEPS = 500
WARM_UP = 50
LOG_EVERY = 50
CLIP = 1.0
PLAIN_LOGS = 8
SIZE, WIDTH, TOKENS = 8, 32, 32
ENCODER = DualEncoderConfig(embed_dim=16, text=TextConfig(context_length=TOKENS))
OPTIMIZATION = Optimization(warmup_steps=WARM_UP)


def trainer_figures(rounds: int, steps: int = STEPS) -> dict[str, float]:
    """Milliseconds of CPU time a step that each Trainer takes beyond the loop: medians over the rounds.

    Args:
        rounds: of the comparison.
        steps: of a round.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    quiet()
    warnings.filterwarnings("ignore", module="lightning")
    try:
        found = in_turn(
            {
                "loop": lambda: _loop(steps),
                "mofi": lambda: _fit(_toy(_Toy), steps, ours=True),
                "Trainer alone": lambda: _fit(_toy(_Bare), steps),
                "with eight self.log": lambda: _fit(_toy(_Logging), steps),
            },
            rounds,
            "ms of CPU time a toy step",
        )
    finally:
        torch.set_num_threads(threads)

    def beyond(name: str) -> float:
        return statistics.median(a - b for a, b in zip(found[name], found["loop"], strict=True))

    return {
        "trainer_overhead_ms": beyond("mofi"),
        "bare_trainer_overhead_ms": beyond("Trainer alone"),
        "eight_logs_overhead_ms": beyond("with eight self.log"),
    }


class _Clock:
    """One batch over and over; CPU time from the first step that counts to the end of the last one."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch = batch
        self.steps = steps
        self.milliseconds = 0.0

    def __len__(self) -> int:
        return WARM_UP + self.steps + 1

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            if step == WARM_UP:
                started = time.process_time()
            if step == WARM_UP + self.steps:
                self.milliseconds = 1000 * (time.process_time() - started) / self.steps
            yield self.batch


class _Data(SyntheticDataModule):
    def __init__(self, steps: int) -> None:
        super().__init__(rows=16)
        self.steps = steps

    def train_dataloader(self) -> _Clock:
        self.clock = _Clock(self.global_batch(0), self.steps)
        return self.clock

    val_dataloader = None  # type: ignore[assignment]


class _Images(ImageEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = WIDTH
        self.preprocess = Preprocess(size=SIZE)
        self.linear = nn.Linear(3 * SIZE * SIZE, WIDTH)

    def forward(self, pixels: Tensor, tokens: bool = False) -> EncoderOutput:
        return EncoderOutput(self.linear(pixels.flatten(1)))


class _Texts(TextEncoder):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.feature_dim = WIDTH
        self.context_length = TOKENS
        self.words = nn.Embedding(vocab_size, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: bool = False) -> EncoderOutput:
        return EncoderOutput(self.words(input_ids).mean(1))


class _Toy(PretrainingModule):
    """MOFI's objective on encoders of one matrix each."""

    def build(self, vocabulary: Any, tokenizer: Any = None) -> None:
        image, tokenizer = _Images(), tokenizer or Tokenizer.load("bytes")
        self.model = DualEncoder(
            ENCODER,
            ImageTower(image, ENCODER.embed_dim, image.preprocess),
            image.preprocess,
            TextTower(_Texts(tokenizer.vocab_size), ENCODER.embed_dim),
            tokenizer,
        )
        self.teacher = None
        self.objective = MOFI(ObjectiveSpec(self.model.embed_dim, WIDTH, vocabulary, text_feature_dim=WIDTH))


class _Bare(_Toy):
    """The module without what it measures and logs."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(batch).loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        pass

    configure_gradient_clipping = LightningModule.configure_gradient_clipping

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        step = self.global_step
        LightningModule.optimizer_step(self, epoch, batch_idx, optimizer, closure)
        self.objective.after_optimizer_step(self.optimization.lr_factor(step, self.trainer.max_steps))


class _Logging(_Bare):
    """As one would write it: every value is logged at every step."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for number in range(PLAIN_LOGS):
            self.log(f"train/{number}", loss)
        return loss


def _toy(kind: type[_Toy]) -> _Toy:
    torch.manual_seed(1)
    return kind(ENCODER, MOFI, OPTIMIZATION)


def _fit(module: _Toy, steps: int, ours: bool = False) -> float:
    data = _Data(steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = _trainer(Path(folder), WARM_UP + steps + 1, ours)
        trainer.fit(module, datamodule=data)
    return data.clock.milliseconds


def _trainer(folder: Path, max_steps: int, ours: bool) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        strategy=SingleProcessStrategy() if ours else "auto",
        max_steps=max_steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        enable_model_summary=False,
        enable_checkpointing=False,
        enable_progress_bar=ours,
        log_every_n_steps=LOG_EVERY,
        gradient_clip_val=CLIP,
        logger=CSVLogger(folder, name="logs"),
        callbacks=default_callbacks(None, checkpointing=False, progress_bar=None) if ours else None,
    )


def _loop(steps: int) -> float:
    """The same step in a loop of one's own."""
    module, data = _toy(_Toy), _Data(steps)
    module.build(data.vocabulary)
    data.use(module.model.preprocess, module.model.tokenizer, TOKENS)
    clock = data.train_dataloader()
    factor: Callable[[int], float] = functools.partial(OPTIMIZATION.lr_factor, max_steps=len(clock))
    optimizer = OPTIMIZATION.build(dict(module.named_parameters()), {})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    module.train()
    for step, batch in enumerate(clock):
        optimizer.zero_grad()
        module(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        module.objective.after_optimizer_step(factor(step))
    return clock.milliseconds
