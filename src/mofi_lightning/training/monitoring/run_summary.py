"""What a run did and how fast: images a second, model FLOPs utilisation, time between steps, memory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mofi_lightning.training.checkpoints.callback import StepCheckpoint
from mofi_lightning.training.monitoring.evaluation import Evaluation
from mofi_lightning.training.monitoring.peak_rates import peak_rate
from mofi_lightning.training.planning.flops import image_flops, text_flops
from mofi_lightning.types import Batch, InputError

if TYPE_CHECKING:
    from mofi_lightning.training.module import PretrainingModule


class _Totals(NamedTuple):
    """Of all ranks, but for the times, which are this rank's.

    Attributes:
        seconds: of training, without validation, evaluation and checkpoints.
        waited: seconds between steps: for the next batch, the logger, other callbacks.
        images: trained on.
        tokens: of the images' texts, their padding included.
    """

    seconds: float = 0.0
    waited: float = 0.0
    images: int = 0
    tokens: int = 0


class RunSummary(Callback):
    """Logs how fast a run is, at the trainer's interval; at the end, writes what it did.

    Logged are `train/images_per_second`; `train/data_wait`, the share of time from the end of a step to the
    start of the next, in which the process waits for a batch and moves it to the device, but also runs the
    logger and other callbacks, so that the wait for data is at most that; `train/memory_gb`, on a GPU the
    most that tensors took since the last time, on Linux without one the memory of the process; and, where
    the device's peak is known, `train/mfu`: three times the FLOPs of the encoders' forward pass (once where a
    whole encoder is frozen; what is run again to save memory does not count) a second, over the peak of all
    devices (PaLM, arXiv 2204.02311, appendix B).

    `<default_root_dir>/summary.json` holds seconds, steps, images_per_second, data_wait, mfu, memory_gb (the
    most of the run), skipped_steps and bad_rows. They go on over resumes; times leave validation,
    evaluation and checkpoints out. Times, memory and bad rows are those of the first process; bad rows are
    the ones it replaced because they could not be read, by source and kind.

    Args:
        peak_flops: FLOP/s of one device in the precision of the run, where `train/mfu` would not know it.

    Raises:
        InputError: `peak_flops` is not positive.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and not peak_flops > 0:
            raise InputError(f"peak_flops is {peak_flops}; give the FLOP/s of one device, such as 989e12")
        self.peak_flops = peak_flops
        self.totals = _Totals()
        self.memory_gb = 0.0
        self._window = _Totals()  # the totals when they were logged
        self._started = 0.0
        self._ended = 0.0
        self._paused = 0.0
        self._text_flops: dict[int, int] = {}  # by the number of tokens
        self._image_flops: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Totals, so that they go on after a resume."""
        return {**self.totals._asdict(), "memory_gb": self.memory_gb}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the totals of a checkpoint."""
        self.totals = _Totals(*(state_dict[name] for name in _Totals._fields))
        self.memory_gb = state_dict["memory_gb"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._window = self.totals
        self._restart(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The time between steps ends; what was spent on checkpoints and evaluations does not count."""
        paused = _seconds_paused(trainer)
        self._ended += paused - self._paused
        self._paused = paused
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step; hand speed and memory to the module, which logs them, at the trainer's interval."""
        pause = _seconds_paused(trainer) - self._paused  # of an evaluation whose hook came before this one
        self._started += pause
        self._ended += pause
        self._paused += pause
        now = time.perf_counter()
        seconds, waited, images, tokens = self.totals
        rows = len(batch["image"]) * trainer.world_size
        width = batch["text"].input_ids.shape[1] if "text" in batch else 0
        self.totals = _Totals(
            seconds + now - self._ended,
            waited + self._started - self._ended,
            images + rows,
            tokens + rows * width,
        )
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and trainer.global_step % interval == 0:
            self._log(trainer, cast("PretrainingModule", pl_module))
        self._ended = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out."""
        self._restart(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary."""
        bad_rows = dict(getattr(getattr(trainer, "datamodule", None), "bad_rows", {}))
        if not trainer.is_global_zero or self.totals.seconds == 0:
            return
        for kind, count in bad_rows.items():
            print(f"replaced {count:,} rows that could not be read: {kind}")
        module = cast("PretrainingModule", pl_module)
        seconds, waited, images, _ = self.totals
        self._take_memory(module.device)
        mfu = self._mfu(trainer, module, self.totals)
        summary = {
            "seconds": round(seconds, 2),
            "steps": trainer.global_step,
            "images_per_second": round(images / seconds, 1),
            "data_wait": round(waited / seconds, 4),
            "mfu": None if mfu is None else round(mfu, 4),
            "memory_gb": round(self.memory_gb, 3),
            "skipped_steps": module.skipped.count,
            "bad_rows": bad_rows,
        }
        path = Path(trainer.default_root_dir) / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(summary, indent=2) + "\n")
        os.replace(partial, path)

    def _restart(self, trainer: Trainer) -> None:
        self._ended = time.perf_counter()
        self._paused = _seconds_paused(trainer)

    def _log(self, trainer: Trainer, module: PretrainingModule) -> None:
        now, then = self.totals, self._window
        window = _Totals(
            now.seconds - then.seconds,
            now.waited - then.waited,
            now.images - then.images,
            now.tokens - then.tokens,
        )
        self._window = now
        values = {
            "images_per_second": window.images / window.seconds,
            "data_wait": window.waited / window.seconds,
            "memory_gb": self._take_memory(module.device),
            "mfu": self._mfu(trainer, module, window),
        }
        module.measured = {name: value for name, value in values.items() if value is not None}

    def _take_memory(self, device: torch.device) -> float | None:
        """GB (1e9 bytes) now, or on a GPU the most since the last call; None where it cannot be told."""
        status = Path("/proc/self/status")
        if device.type == "cuda":
            taken = torch.cuda.max_memory_allocated(device) / 1e9
            torch.cuda.reset_peak_memory_stats(device)
        elif status.exists():
            resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
            taken = int(resident.split()[1]) * 1024 / 1e9
        else:
            return None
        self.memory_gb = max(self.memory_gb, taken)
        return taken

    def _mfu(self, trainer: Trainer, module: PretrainingModule, totals: _Totals) -> float | None:
        peak = self.peak_flops
        if peak is None and module.device.type == "cuda":
            peak = peak_rate(torch.cuda.get_device_name(module.device), str(trainer.precision))
        if peak is None:
            return None
        flops = self._flops_per_image(module, round(totals.tokens / totals.images))
        return flops * totals.images / totals.seconds / (peak * trainer.world_size)

    def _flops_per_image(self, module: PretrainingModule, tokens: int) -> int:
        """Of training on an image and its text of so many tokens."""
        model = module.model
        if self._image_flops is None:
            self._image_flops = image_flops(model)
        flops = _passes(model.image) * self._image_flops
        if model.text is not None and tokens and module.objective.requires & {"text", "text_tokens"}:
            if tokens not in self._text_flops:
                self._text_flops[tokens] = text_flops(model, tokens)
            flops += _passes(model.text) * self._text_flops[tokens]
        return flops


def _passes(tower: torch.nn.Module) -> int:
    """Forward passes that a step takes as long as: the backward's two are not taken where all is frozen."""
    return 3 if any(p.requires_grad for p in tower.parameters()) else 1


def _seconds_paused(trainer: Trainer) -> float:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return sum(c.seconds for c in callbacks if isinstance(c, StepCheckpoint | Evaluation))
