"""The evaluators: the measures on the images, names and captions of an evaluation set."""

from mofi_lightning.evaluation.base import Evaluator
from mofi_lightning.evaluation.evaluators.conse import ConSE
from mofi_lightning.evaluation.evaluators.devise import DeViSEZeroShot
from mofi_lightning.evaluation.evaluators.image_text import ImageText
from mofi_lightning.evaluation.evaluators.knn import KNN
from mofi_lightning.evaluation.evaluators.probes import LinearProbe, RidgeProbe
from mofi_lightning.evaluation.evaluators.retrieval import Retrieval
from mofi_lightning.evaluation.evaluators.zero_shot import ZeroShot

__all__ = [
    "KNN",
    "ConSE",
    "DeViSEZeroShot",
    "ImageText",
    "LinearProbe",
    "Retrieval",
    "RidgeProbe",
    "ZeroShot",
    "standard_evaluators",
]


def standard_evaluators() -> list[Evaluator]:
    """What `mofi evaluate` runs on data without evaluators of its own."""
    return [Retrieval(), KNN(), ZeroShot(), ImageText()]
