"""What a run gets unless it asks for something else: callbacks, loggers, threads, and quiet."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only

from mofi_lightning.training.checkpoints.callback import StepCheckpoint
from mofi_lightning.training.monitoring.callbacks import StepProgressBar
from mofi_lightning.training.monitoring.run_summary import RunSummary
from mofi_lightning.training.signals import StopAtSignal
from mofi_lightning.types import InputError


def quiet() -> None:
    """Keep Lightning's tips and the advice that does not apply to streams of known length off the screen."""
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",  # of `weights_only`, at each checkpoint
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create")
    warnings.filterwarnings("ignore", ".*FSDP2-wrapped module .* returned a view tensor.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
    warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training")  # what is frozen


def default_callbacks(given: Any, checkpointing: bool | None, progress_bar: bool | None) -> list[Callback]:
    """The callbacks `given`, and ours for checkpoints, summary, signals and progress where they bring none.

    Args:
        given: the trainer's `callbacks`: a list, one, or None.
        checkpointing: False for no checkpoints.
        progress_bar: False for no bar.

    Raises:
        InputError: Lightning's own ModelCheckpoint is among them.
    """
    callbacks = list(given) if isinstance(given, list) else [given] if given else []
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and not isinstance(callback, StepCheckpoint):
            raise InputError(
                f"trainer.callbacks has a {type(callback).__name__}, whose checkpoints a run could not go on "
                "from; use StepCheckpoint (every_n_steps, keep_last, monitor)"
            )
    if checkpointing is not False and not any(isinstance(c, StepCheckpoint) for c in callbacks):
        callbacks.append(StepCheckpoint())
    for kind in (RunSummary, StopAtSignal):
        if not any(isinstance(c, kind) for c in callbacks):
            callbacks.append(kind())
    if progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(StepProgressBar(refresh_rate=10))
    return callbacks


def default_loggers(root: Path) -> list[Logger]:
    """CSV and, where it is installed, TensorBoard, in one folder below `root/logs`."""
    loggers: list[Logger] = [CSVLogger(root, name="logs")]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(root, name="logs", version=loggers[0].version))
    return loggers


def profiler(name: str, root: Path) -> Profiler:
    """The profiler of that name; it writes `root/fit-profile*`, for 'pytorch' a Chrome trace, too.

    Raises:
        InputError: there is none of that name.
    """
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    if name not in kinds:
        raise InputError(f"there is no trainer.profiler {name!r}; choose one of {', '.join(kinds)}")
    return kinds[name](dirpath=root, filename="profile")


def probe(config: dict[str, Any]) -> Trainer:
    """A bare trainer that tells what devices there are: 'auto', a count, a list, torchrun's or SLURM's."""
    names = ("accelerator", "devices", "num_nodes")
    return Trainer(
        **{name: config[name] for name in names if config.get(name) is not None},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def cap_workers(data: Any, processes: int) -> None:
    """Lower the data's `num_workers` to this machine's cores: more only wait; the batches stay the same."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most, asked = max(1, cores // processes), getattr(data, "num_workers", 0)
    if asked > most:
        data.num_workers = most
        say(f"data.num_workers: {most} instead of {asked}, for {cores} cores (processes: {processes})")


def share_cores(processes: int, workers: int) -> None:
    """Leave a core to each loader: threads that wait for one another on a busy core cost tenfold."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes - workers))


@rank_zero_only
def say(message: str) -> None:
    """Print on rank 0."""
    print(message, flush=True)
