"""When checkpoints are written, and which of them are kept."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from mofi_lightning.encoders.checkpoint import is_complete
from mofi_lightning.training.checkpoints.folders import (
    SCORE,
    checkpoint_path,
    latest_checkpoint,
    refuse_branching,
    refuse_earlier_run,
    remove_superseded,
    step_of,
)
from mofi_lightning.training.checkpoints.monitored import (
    evaluation_of,
    measured_between_steps,
    refuse_unlogged,
    score_of,
)
from mofi_lightning.training.checkpoints.strategy import Background, FolderCheckpoints
from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)


class StepCheckpoint(ModelCheckpoint):
    """Saves to `<default_root_dir>/checkpoints/step=N.ckpt`; the newest are kept, older ones are removed.

    Training goes on while a checkpoint is written: it waits only until the state is copied to host memory,
    which must hold it a second time. The last step, and what `save_now` saves, are written before anything
    else happens. A checkpoint that cannot be written is reported, and training goes on; one of the last step
    ends the run. A run that starts at step 0 where an earlier run left checkpoints or a model is refused: the
    two would be mixed up.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
        keep_last: how many of the newest are kept.
        monitor: a logged value, such as val/map, whose best checkpoint so far is kept in `checkpoints/best`;
            looked at after each validation, or whenever the `Evaluation` that logs it has measured.
        mode: whether the largest ('max') or the smallest ('min') value is the best; goes with `monitor`.

    Attributes:
        seconds: that training stood still for checkpoints, in this process.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep_last: int = 1,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
    ) -> None:
        if (monitor is None) != (mode is None):
            raise InputError(
                f"StepCheckpoint.monitor is {monitor!r} and its mode {mode!r}; give both, mode min for a "
                "loss and max for an mAP, or neither"
            )
        for name, value in (("every_n_steps", every_n_steps), ("keep_last", keep_last)):
            if value < 1:
                raise InputError(f"StepCheckpoint.{name} is {value}; give a positive number")
        super().__init__(
            filename="{step:08d}",
            every_n_train_steps=every_n_steps,
            monitor=monitor,
            mode=mode or "min",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.seconds = 0.0
        self._saved: Path | None = None  # the last one begun

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the checkpoints into the run's folder."""
        if not isinstance(trainer.strategy, FolderCheckpoints):
            raise InputError(
                f"StepCheckpoint does not save under {type(trainer.strategy).__name__}; give the trainer "
                "strategy=SingleProcessStrategy(), or ShardedStrategy() for several processes"
            )
        self.dirpath = trainer.strategy.broadcast(str(Path(trainer.default_root_dir) / "checkpoints"))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is best is written beside it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to be mixed up with another run, and what could be saved but not be read back."""
        root = Path(trainer.default_root_dir)
        if trainer.global_step == 0:
            refuse_earlier_run(root)
        else:
            refuse_branching(root, trainer.global_step)
        if self.monitor is not None:
            refuse_unlogged(trainer, self.monitor)
            self._look_again(trainer, self.monitor)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # before hours of training, not after
            _strategy(trainer).check_savable(
                trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save when it is time, and at the last step."""
        step = trainer.global_step
        if step == trainer.max_steps or trainer.lightning_module.skipped.too_many:  # type: ignore[union-attr]
            self.save_now(trainer)
        elif step % self.every_n_steps == 0 and self._may_save(trainer):
            self._save(trainer, checkpoint_path(self._folder, step), background=True)
        if self.monitor and self._may_save(trainer) and measured_between_steps(trainer, self.monitor):
            self._consider(trainer, score_of(trainer, self.monitor))

    def on_train_epoch_end(self, *args: Any) -> None:
        """Steps count, not epochs."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the checkpoint of this step if it is the best so far."""
        if self.monitor is None or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        evaluation = evaluation_of(trainer, self.monitor)
        if evaluation is None or evaluation.every_n_steps is None:
            self._consider(trainer, score_of(trainer, self.monitor))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let a write that has begun come to its end."""
        if isinstance(trainer.strategy, FolderCheckpoints):
            trainer.strategy.finish_saving()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for what is still being written, and save the step if the run ends before the last."""
        started = time.perf_counter()
        _strategy(trainer).finish_saving()
        self.seconds += time.perf_counter() - started
        if trainer.global_step < trainer.max_steps:
            path = checkpoint_path(self._folder, trainer.global_step)
            if not trainer.strategy.broadcast(is_complete(path)):
                self.save_now(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Save the present step, unless that is done, and return when it is on the disk; all ranks must call.

        Raises:
            InputError: it could not be written, on all ranks.
        """
        if not self._may_save(trainer):
            return
        path = checkpoint_path(self._folder, trainer.global_step)
        if self._saved == path:
            started = time.perf_counter()
            error = _strategy(trainer).finish_saving()
            self.seconds += time.perf_counter() - started
        else:
            error = None
        if self._saved != path or error is not None:
            self._save(trainer, path, background=False)

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None
        return Path(self.dirpath)

    def _may_save(self, trainer: Trainer) -> bool:
        return not trainer.fast_dev_run and trainer.state.fn == TrainerFn.FITTING and trainer.global_step > 0  # type: ignore[attr-defined]

    def _save(self, trainer: Trainer, path: Path, background: bool) -> None:
        started = time.perf_counter()
        self._saved = path
        if self.monitor is None:
            self.best_model_path = str(path)
        if background:
            trainer.save_checkpoint(path, storage_options=Background(self._finished))
        else:
            try:
                trainer.save_checkpoint(path)
            except InputError as error:
                raise InputError(f"{error}; {_newest_intact(path)}") from error
            if trainer.is_global_zero:
                self._finished(path, None)
        self.seconds += time.perf_counter() - started

    def _finished(self, path: Path, error: str | None) -> None:
        """Of a write, on rank 0, perhaps in another thread."""
        if error is None:
            remove_superseded(path, self.keep_last)
        else:
            _log.warning(
                "checkpoint %s could not be written: %s; training goes on, %s",
                path,
                error,
                _newest_intact(path),
            )

    def _look_again(self, trainer: Trainer, monitor: str) -> None:
        """At a step that a run goes on from, and that was measured once more before it does."""
        evaluation = evaluation_of(trainer, monitor)
        if evaluation is None or evaluation.step != trainer.global_step or not self._may_save(trainer):
            return
        present = checkpoint_path(self._folder, trainer.global_step)
        if trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == present.resolve():
            self._saved = present
            self._consider(trainer, score_of(trainer, monitor))

    def _consider(self, trainer: Trainer, score: float | None) -> None:
        """Keep the present step if its score is the best so far; None if it has none."""
        score = trainer.strategy.broadcast(score)
        if score is not None and trainer.strategy.broadcast(self._is_best(score)):
            self._keep_best(trainer, score)

    def _is_best(self, score: float) -> bool:
        try:
            best = json.loads((self._folder / "best" / SCORE).read_text())
        except (OSError, ValueError):
            best = {}
        if math.isnan(score):
            return False
        if (best.get("monitor"), best.get("mode")) != (self.monitor, self.mode):
            return True
        return bool(score > best["score"] if self.mode == "max" else score < best["score"])

    def _keep_best(self, trainer: Trainer, score: float) -> None:
        started = time.perf_counter()
        present = checkpoint_path(self._folder, trainer.global_step)
        path = checkpoint_path(self._folder / "best", trainer.global_step)
        try:
            is_saved = _strategy(trainer).finish_saving() is None and self._saved == present
            if not is_saved:
                trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                if is_saved:
                    _copy(present, path)
                self._note_best(path, score)
        except (InputError, OSError) as error:
            if trainer.is_global_zero:
                _log.warning("the best checkpoint so far, %s, could not be kept: %s", path, error)
        else:
            self.best_model_path = str(path)
        self.seconds += time.perf_counter() - started

    def _note_best(self, path: Path, score: float) -> None:
        """Write down how good the checkpoint is, then remove the one before."""
        note = {"step": step_of(path), "monitor": self.monitor, "mode": self.mode, "score": score}
        partial = path.parent / f"{SCORE}.partial"
        partial.write_text(json.dumps(note) + "\n")
        os.replace(partial, path.parent / SCORE)
        for other in path.parent.glob("step=*.ckpt*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)


def _strategy(trainer: Trainer) -> FolderCheckpoints:
    assert isinstance(trainer.strategy, FolderCheckpoints)
    return trainer.strategy


def _newest_intact(path: Path) -> str:
    newest = latest_checkpoint(path.parent.parent)
    return f"the newest intact checkpoint is {newest}" if newest else "there is no intact checkpoint yet"


def _copy(source: Path, target: Path) -> None:
    """A second folder with the same files, which take no more room where the disk allows it."""
    partial = target.with_name(f"{target.name}.partial")
    for copy in (os.link, shutil.copy2):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(source, partial, copy_function=copy)
        except OSError:
            if copy is shutil.copy2:
                raise
        else:
            break
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
