"""The value by which checkpoints are chosen: who logs it, and what it is."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import Trainer

from mofi_lightning.evaluation.base import Evaluator
from mofi_lightning.training.monitoring.evaluation import Evaluation
from mofi_lightning.types import InputError


def evaluation_of(trainer: Trainer, monitor: str) -> Evaluation | None:
    """The callback that logs `monitor`; None if the module does, or as long as nobody is known to."""
    return next((evaluation for evaluation in _evaluations(trainer) if evaluation.logs(monitor)), None)


def measured_between_steps(trainer: Trainer, monitor: str) -> bool:
    """Whether the evaluation that logs `monitor` comes every n steps and has measured at the present one."""
    evaluation = evaluation_of(trainer, monitor)
    if evaluation is None and not trainer.val_dataloaders:  # no name that validation could log
        evaluation = next(_called(trainer, monitor), None)
    return (
        evaluation is not None and bool(evaluation.every_n_steps) and evaluation.step == trainer.global_step
    )


def score_of(trainer: Trainer, monitor: str) -> float | None:
    """The value at the present step, after a validation or an evaluation; None if it could not be measured.

    Raises:
        InputError: nothing logs it.
    """
    evaluation = evaluation_of(trainer, monitor)
    if evaluation is not None:
        return evaluation.found.get(monitor) if evaluation.step == trainer.global_step else None
    found = trainer.callback_metrics.get(monitor)
    if found is not None:
        return float(found)
    if any(evaluation.failed for evaluation in _called(trainer, monitor)):
        return None
    prefix = monitor.partition("/")[0]
    logged = sorted(name for name in trainer.callback_metrics if name.startswith(("val", f"{prefix}/")))
    raise InputError(
        f"StepCheckpoint.monitor is {monitor!r}, which validation does not log; it logs {', '.join(logged)}"
    )


def refuse_unlogged(trainer: Trainer, monitor: str) -> None:
    """Refuse a value of which it is clear at the start of training that nothing will log it.

    Raises:
        InputError: there is neither a validation nor an evaluation that could, or it is a measure of an
            evaluator that the evaluation of its name does not have.
    """
    if evaluation_of(trainer, monitor) is not None:
        return
    prefix, _, measure = monitor.partition("/")
    named = list(_called(trainer, monitor))
    if not named and not trainer.val_dataloaders:
        raise InputError(
            f"StepCheckpoint.monitor is {monitor!r}, and nothing looks at it: there is no validation (set "
            f"data.validation) and no Evaluation called {prefix!r}"
        )
    kinds = [kind.__name__ for kind in _subclasses(Evaluator) if measure in getattr(kind, "measures", ())]
    if named and kinds:
        logged = ", ".join(m for evaluator in named[0].evaluators for m in evaluator.measures)
        raise InputError(
            f"StepCheckpoint.monitor is {monitor!r}, but Evaluation {prefix!r} measures {logged}; "
            f"add {kinds[0]} to its evaluators"
        )


def _evaluations(trainer: Trainer) -> Iterator[Evaluation]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return (callback for callback in callbacks if isinstance(callback, Evaluation))


def _called(trainer: Trainer, monitor: str) -> Iterator[Evaluation]:
    """Those with the name before the slash."""
    prefix = monitor.partition("/")[0]
    return (evaluation for evaluation in _evaluations(trainer) if evaluation.name == prefix)


def _subclasses(kind: type) -> Iterator[type]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)
