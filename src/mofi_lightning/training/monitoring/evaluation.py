"""The evaluators of `mofi evaluate` during training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng

from mofi_lightning.evaluation.base import EvaluationData, Evaluator
from mofi_lightning.evaluation.datasets import EvaluationSet, at_path
from mofi_lightning.evaluation.evaluators import Retrieval
from mofi_lightning.training.monitoring.embedding import ShardedEmbedder, TrainedModel
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.training.module import PretrainingModule

_log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Measures the model on a labelled set during training and logs `{name}/{measure}`, such as `val/map`.

    Every number of the evaluators that is finite is logged, and a checkpoint may be chosen by any of them
    (`StepCheckpoint.monitor`). Where the run averages its weights, the average is measured. The images are
    embedded in shares by all ranks, with equal forward passes, and anew each time: none stays in memory.
    Training is bit for bit the same with and without this callback.

    What cannot be measured, such as embeddings that are not finite, is reported, and training goes on.

    After a resume: a checkpoint of step N is written after the evaluation of step N, so that this one is not
    run again. Where evaluations come with validations, the checkpoint is written before; the evaluation of
    the step that a run goes on from is then run once more, and the same numbers are logged for it, so that a
    run that was killed within it does not lack it.

    Args:
        data: a labelled set, or its path as `mofi evaluate` takes it (`pairs/validation.parquet`).
        name: of the set, unique among these callbacks.
        evaluators: what to measure; `Retrieval` if left out.
        every_n_steps: optimizer steps between two evaluations; the last step is always measured. If left
            out, the set is measured with every validation.
        batch_size: images a forward pass.
        workers: threads of each process that decode images.

    Attributes:
        step: of the newest evaluation; -1 before the first.
        found: every number of the newest evaluation, finite or not, by the name it is logged under.
        failed: why evaluators could not measure anything then; empty if all could.
        seconds: that training stood still for evaluations every n steps, in this process.

    Raises:
        InputError: an argument makes no sense.
    """

    def __init__(
        self,
        data: EvaluationData | Path,
        name: str = "val",
        evaluators: list[Evaluator] | None = None,
        every_n_steps: int | None = None,
        batch_size: int = 256,
        workers: int = 2,
    ) -> None:
        for option, value in (
            ("every_n_steps", every_n_steps),
            ("batch_size", batch_size),
            ("workers", workers),
        ):
            if value is not None and value < 1:
                raise InputError(f"Evaluation.{option} is {value}; give a positive number")
        self.data = data
        self.name = name
        self.evaluators = [Retrieval()] if evaluators is None else evaluators
        tasks = [evaluator.task for evaluator in self.evaluators]
        if not tasks or len(set(tasks)) < len(tasks):
            raise InputError(
                f"Evaluation.evaluators of {name!r} are {', '.join(tasks) or 'none'}; give one or more, of "
                "each kind one, or leave them out for Retrieval"
            )
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.workers = workers
        self.step = -1
        self.found: dict[str, float] = {}
        self.failed: tuple[str, ...] = ()
        self.seconds = 0.0
        self._names: set[str] = set()  # of all that was ever found
        self._set: EvaluationSet | None = None
        self._model: TrainedModel | None = None
        self._said: set[str] = set()

    def logs(self, name: str) -> bool:
        """Whether a number of that name is one of this callback's, as far as is known by now."""
        declared = {f"{self.name}/{m}" for evaluator in self.evaluators for m in evaluator.measures}
        return name in declared or name in self._names

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find missing data, and names that are taken, before training starts.

        Raises:
            InputError: the data is not there, or two evaluations have one name.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(c, Evaluation) and c.name == self.name for c in callbacks) > 1:
            raise InputError(
                f"two Evaluations are called {self.name!r} and would log the same names; give one another "
                "name, such as name: gpr"
            )
        self._model = None
        if self._set is None:
            data = self.data if isinstance(self.data, EvaluationData) else at_path(self.data)
            self._set = data.open()
            self._say_once(trainer, self._set.notes)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to wait for a validation that never comes; make up for what a killed run may lack."""
        if self.every_n_steps is not None:
            return
        if not trainer.val_dataloaders:
            raise InputError(
                f"Evaluation {self.name!r} comes with every validation, and there is none; set "
                "data.validation, or every_n_steps of Evaluation"
            )
        interval = trainer.val_check_batch  # steps, since validations are not counted in epochs
        assert interval is not None
        due = trainer.global_step % interval == 0 and 0 < trainer.global_step < trainer.max_steps
        if due and not trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation:
            self._measure_between_steps(trainer, cast("PretrainingModule", pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Measure when it is time, and at the last step."""
        if self.every_n_steps is None:
            return
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._measure_between_steps(trainer, cast("PretrainingModule", pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure with the validation."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        if trainer.sanity_checking or (fitting and self.every_n_steps is not None):
            return
        self._measure(trainer, cast("PretrainingModule", pl_module))
        primary = f"{self.name}/{self.evaluators[0].measures[0]}"
        for name, value in self._finite().items():
            pl_module.log(name, value, prog_bar=name == primary)

    def _measure_between_steps(self, trainer: Trainer, module: PretrainingModule) -> None:
        started = time.perf_counter()
        with module.averaged():
            self._measure(trainer, module)
        module.log_now(self._finite())
        for logger in trainer.loggers:
            logger.save()  # a run that is killed and goes on from this step does not log it again
        self.seconds += time.perf_counter() - started

    def _measure(self, trainer: Trainer, module: PretrainingModule) -> None:
        assert self._set is not None
        found: dict[str, float] = {}
        failed: dict[str, None] = {}  # a set in order
        # probes that are trained need gradients; Lightning validates without
        with _evaluating(module), isolate_rng(), torch.inference_mode(False), torch.enable_grad():
            embedder = ShardedEmbedder(self._of(trainer, module), self.batch_size, self.workers)
            for evaluator in self.evaluators:
                try:
                    measurement = evaluator(embedder, self._set)
                except InputError as error:
                    failed[str(error)] = None
                    continue
                found |= {f"{self.name}/{name}": value for name, value in measurement.metrics().items()}
                skipped = f"{evaluator.task} is not measured: {measurement.skipped}"
                self._say_once(trainer, [skipped] if measurement.skipped else measurement.notes)
        # the same to the last bit on every rank, of whatever kind its processor is
        self.found = trainer.strategy.broadcast(found)
        self.failed = trainer.strategy.broadcast(tuple(failed))
        self.step = trainer.global_step
        self._names |= self.found.keys()
        if self.failed and trainer.is_global_zero:
            _log.warning(
                "Evaluation %r at step %d: %s; nothing is logged of it",
                self.name,
                self.step,
                "; ".join(self.failed),
            )

    def _of(self, trainer: Trainer, module: PretrainingModule) -> TrainedModel:
        if self._model is None:
            precision = trainer.precision_plugin.forward_context
            self._model = TrainedModel(module.model, module.objective.label_space(), module.device, precision)
        self._model.refresh()
        return self._model

    def _finite(self) -> dict[str, float]:
        return {name: value for name, value in self.found.items() if math.isfinite(value)}

    def _say_once(self, trainer: Trainer, lines: tuple[str, ...] | list[str]) -> None:
        for line in lines:
            if line not in self._said and trainer.is_global_zero:
                _log.warning("Evaluation %r: %s", self.name, line)
            self._said.add(line)


@contextmanager
def _evaluating(module: LightningModule) -> Iterator[None]:
    """Within, all parts are in evaluation mode; after it, each is in its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
