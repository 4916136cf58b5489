"""Pretraining with Lightning: the module, its strategies, optimisation, checkpoints and callbacks.

The names are lazy: the verbs that do not train never import Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Evaluation": "monitoring.evaluation",
    "Optimization": "optimization.config",
    "PretrainingModule": "module",
    "RunSummary": "monitoring.run_summary",
    "ShardedStrategy": "strategy",
    "SingleProcessStrategy": "single_process",
    "StepCheckpoint": "checkpoints.callback",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if TYPE_CHECKING:
    from mofi_lightning.training.checkpoints.callback import StepCheckpoint as StepCheckpoint
    from mofi_lightning.training.module import PretrainingModule as PretrainingModule
    from mofi_lightning.training.monitoring.evaluation import Evaluation as Evaluation
    from mofi_lightning.training.monitoring.run_summary import RunSummary as RunSummary
    from mofi_lightning.training.optimization.config import Optimization as Optimization
    from mofi_lightning.training.single_process import SingleProcessStrategy as SingleProcessStrategy
    from mofi_lightning.training.strategy import ShardedStrategy as ShardedStrategy
