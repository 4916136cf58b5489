"""How a run that ends before its time ends: no process left behind, no empty log folder, one clear line."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from mofi_lightning.types import InputError

_GRACE = 3.0  # seconds in which the other processes may say what is wrong with them
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|ProcessGroup", re.IGNORECASE)


@contextmanager
def tidy(trainer: Trainer) -> Iterator[None]:
    """Within, an error or a Ctrl-C ends the processes that Lightning started, too, and is told in one line.

    Raises:
        InputError: another process has ended, so that this one could not go on.
    """
    try:
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code == 0):
            _end_others(trainer)
        _discard_empty_logs(trainer)
        # Lightning makes an exit of it
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from error
        if trainer.world_size > 1 and isinstance(error, RuntimeError) and _is_loss_of_a_rank(error):
            raise InputError(
                f"another of the {trainer.world_size} processes has ended, and what it printed last says why "
                f"(rank {trainer.global_rank} saw: {str(error).splitlines()[0]}); once that is mended, go on "
                "with --ckpt_path last"
            ) from error
        raise


def _is_loss_of_a_rank(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or bool(_LOST.search(str(error)))


def _end_others(trainer: Trainer) -> None:
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    deadline = time.monotonic() + _GRACE
    for process in launcher.procs:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    launcher.kill(signal.SIGKILL)


def _discard_empty_logs(trainer: Trainer) -> None:
    """Remove the folder of a log into which nothing was logged."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, CSVLogger) and Path(logger.root_dir) == Path(trainer.default_root_dir) / "logs":
            folder = Path(logger.log_dir)
            if folder.is_dir() and not (folder / "metrics.csv").exists():
                shutil.rmtree(folder)
