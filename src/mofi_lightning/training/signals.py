"""Signals that end a run: the running step is finished, a checkpoint saved, and all ranks end together.

Lightning's own handlers talk to the other ranks from inside the handler, at whatever collective each of them
happens to be, and save nothing; they are replaced. Ours set a flag, on which the ranks agree once a step, in
the all-reduce that measures the gradients.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from mofi_lightning.distributed import world_size
from mofi_lightning.training.checkpoints.callback import StepCheckpoint
from mofi_lightning.training.checkpoints.folders import checkpoint_path

_TWICE = 1.0  # seconds; a launcher and the terminal may both pass on the same Ctrl-C


class StopAtSignal(Callback):
    """Ends training after the running step, with a checkpoint, when any rank gets a signal to stop.

    SIGTERM and the first Ctrl-C do so, and under SLURM the signal to requeue (SIGUSR1 unless the
    `SLURMEnvironment` names another), after which the job is queued again. A second Ctrl-C ends the run at
    once. The exit code is 128 and the signal's number. Processes that load data leave signals to this one. A
    validation that is cut off, or was due at the step that is saved, is not made up for: the resumed run
    validates when the next is due.

    Attributes:
        signals: that are handled while training runs.
    """

    def __init__(self) -> None:
        self.signals = [signal.SIGTERM, signal.SIGINT]
        self._requeue: signal.Signals | None = None
        self._received: signal.Signals | None = None
        self._when = 0.0
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers, and of the collective a step in which they are asked."""
        if stage != "fit":
            return
        self._trainer = trainer
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = environment.requeue_signal
            assert self._requeue is not None
            self.signals.append(self._requeue)
        trainer._signal_connector = _Handlers(trainer, self)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; nothing else is safe where a handler may run."""
        trainer, now = self._trainer, time.monotonic()
        assert trainer is not None
        if signum == self._received == signal.SIGINT and now - self._when > _TWICE:
            _end_at_once(trainer)
        if self._received is None:
            self._received, self._when = signal.Signals(signum), now
            trainer.lightning_module.stop_requested = True  # type: ignore[assignment]
            if trainer.is_global_zero:
                again = ", Ctrl-C again ends at once" if signum == signal.SIGINT else ""
                # printing may not be interrupted by printing
                os.write(
                    2, f"\n{self._received.name}: the step is finished and saved first{again}\n".encode()
                )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Save and end if any rank was asked to stop before the gradients were measured."""
        if pl_module.gradients.stop and trainer.global_step < trainer.max_steps:
            self._save_and_end(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Save what training has reached, and end; a validation after the last step is let run."""
        unfinished = trainer.state.fn == "fit" and trainer.global_step < trainer.max_steps
        if unfinished and self._any_rank(trainer):
            if trainer.sanity_checking:
                self._end(trainer, "before the first step: there is nothing to save")
            self._save_and_end(trainer)

    def _save_and_end(self, trainer: Trainer) -> NoReturn:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saving = next((c for c in callbacks if isinstance(c, StepCheckpoint)), None)
        if saving is None:
            self._end(trainer, f"at step {trainer.global_step}; nothing is saved (no StepCheckpoint)")
        saving.save_now(trainer)
        path = checkpoint_path(Path(trainer.default_root_dir) / "checkpoints", trainer.global_step)
        self._end(trainer, f"at step {trainer.global_step}; saved {path}; go on with --ckpt_path last")

    def _end(self, trainer: Trainer, what: str) -> NoReturn:
        signum = signal.Signals(self._agreed(trainer))
        if trainer.is_global_zero:
            print(f"stopped by {signum.name} {what}", flush=True)
            if signum == self._requeue:
                _requeue_job()
        environment = trainer._accelerator_connector.cluster_environment
        if trainer.global_rank > 0 and isinstance(environment, LightningEnvironment):
            raise SystemExit(0)  # else rank 0, which has the exit code, would be killed before it ends
        raise SystemExit(128 + signum)

    def _any_rank(self, trainer: Trainer) -> bool:
        return self._agreed(trainer) > 0

    def _agreed(self, trainer: Trainer) -> int:
        """The signal to stop of any rank, 0 for none; SIGTERM comes before the others. A collective."""
        signum = torch.tensor(int(self._received or 0), device=trainer.strategy.root_device)
        if world_size() > 1:
            dist.all_reduce(signum, dist.ReduceOp.MAX)
        return int(signum)


class _Handlers(_SignalConnector):
    """Sets our handlers where Lightning sets its own, and restores what was there where it does."""

    def __init__(self, trainer: Trainer, stop: StopAtSignal) -> None:
        super().__init__(trainer)
        self._stop = stop

    def register_signal_handlers(self) -> None:
        self._original_handlers = self._get_current_signal_handlers()
        for signum in self._stop.signals:
            self._register_signal(signum, self._stop.receive)
        _left_to_parent.update(self._stop.signals)

    def teardown(self) -> None:
        _left_to_parent.clear()
        super().teardown()


_left_to_parent: set[signal.Signals] = set()


def _leave_signals_to_parent() -> None:
    """In a forked child: a signal to the whole group must not end those that load data for the last step."""
    if _left_to_parent:
        signal.pthread_sigmask(signal.SIG_BLOCK, _left_to_parent)
        threading.Thread(target=_end_at_word_of_parent, daemon=True).start()


def _end_at_word_of_parent() -> None:
    """SIGTERM from the parent is how a loader that hangs is ended."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


os.register_at_fork(after_in_child=_leave_signals_to_parent)


def _end_at_once(trainer: Trainer) -> NoReturn:
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(128 + signal.SIGINT)


def _requeue_job() -> None:
    """Ask SLURM to queue this job, or this task of an array of jobs, again."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        refusal = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        print(f"job {job} is not queued again (scontrol requeue: {refusal}); submit it anew", flush=True)
    else:
        print(f"job {job} is queued again", flush=True)
