"""Evaluation data sets: each a small class that opens what is on disk as an `EvaluationSet`."""

from mofi_lightning.evaluation.datasets.captions import CaptionsFile
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.folders import ClassFolders
from mofi_lightning.evaluation.datasets.gpr1200 import GPR1200
from mofi_lightning.evaluation.datasets.huggingface import HuggingFace
from mofi_lightning.evaluation.datasets.imagenet import ImageNet, ImageNetRetrieval
from mofi_lightning.evaluation.datasets.litdata import LitData
from mofi_lightning.evaluation.datasets.opening import at_path
from mofi_lightning.evaluation.datasets.pairs import PairsFile
from mofi_lightning.evaluation.datasets.webdataset import WebDataset

__all__ = [
    "GPR1200",
    "CaptionsFile",
    "ClassFolders",
    "EvaluationSet",
    "HuggingFace",
    "ImageNet",
    "ImageNetRetrieval",
    "LitData",
    "PairsFile",
    "WebDataset",
    "at_path",
]
