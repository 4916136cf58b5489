"""Pretraining with Lightning: the module, its strategy, optimisation, checkpoints and callbacks."""

from mofi_lightning.training.callbacks import RetrievalValidation, RunSummary
from mofi_lightning.training.checkpointing import StepCheckpoint
from mofi_lightning.training.module import PretrainingModule
from mofi_lightning.training.optimization import Optimization
from mofi_lightning.training.strategy import ShardedStrategy

__all__ = [
    "Optimization",
    "PretrainingModule",
    "RetrievalValidation",
    "RunSummary",
    "ShardedStrategy",
    "StepCheckpoint",
]
