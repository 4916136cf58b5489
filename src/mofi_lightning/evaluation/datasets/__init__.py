"""Evaluation data sets: each a small class that opens what is on disk as an `EvaluationSet`."""

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.folders import ClassFolders
from mofi_lightning.evaluation.datasets.gpr1200 import GPR1200
from mofi_lightning.evaluation.datasets.opening import at_path
from mofi_lightning.evaluation.datasets.pairs import PairsFile

__all__ = ["GPR1200", "ClassFolders", "EvaluationSet", "PairsFile", "at_path"]
