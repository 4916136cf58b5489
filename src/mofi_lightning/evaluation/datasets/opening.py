"""From a path on the command line to an evaluation data set, by what is there."""

from __future__ import annotations

import re
from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.captions import CaptionsFile
from mofi_lightning.evaluation.datasets.files import image_files, subfolders
from mofi_lightning.evaluation.datasets.folders import ClassFolders
from mofi_lightning.evaluation.datasets.gpr1200 import GPR1200, category_of, images_folder
from mofi_lightning.evaluation.datasets.huggingface import SAVED, HuggingFace
from mofi_lightning.evaluation.datasets.imagenet import ImageNet
from mofi_lightning.evaluation.datasets.litdata import LitData
from mofi_lightning.evaluation.datasets.pairs import PairsFile
from mofi_lightning.evaluation.datasets.webdataset import WebDataset
from mofi_lightning.types import InputError

_WNID = re.compile(r"n\d{8}")
_FORMS = (
    "the parquet of a split (`mofi pairs` writes them), a data set of `mofi curate`, images called "
    "CATEGORY_NAME.jpg (GPR1200), ImageNet (val/n01440764/*.JPEG), a folder with one subfolder a class, "
    "CLIP_benchmark's tars (test/0.tar), captions in Karpathy's JSON, or what `datasets` has saved; a "
    "suite's YAML names those of the Hugging Face hub"
)


def at_path(path: Path | str) -> EvaluationData:
    """The data set at `path`, recognised by its files.

    Raises:
        InputError: nothing there, or nothing that is known.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no evaluation set at the path {path}; give {_FORMS}")
    found = _in_folder(path) if path.is_dir() else _of_file(path)
    if found is None:
        raise InputError(f"{path} is no evaluation set; give {_FORMS}")
    return found


def _of_file(path: Path) -> EvaluationData | None:
    return {".parquet": PairsFile, ".json": CaptionsFile}.get(path.suffix, lambda _: None)(path)


def _in_folder(path: Path) -> EvaluationData | None:
    if (path / "truth.parquet").is_file():
        raise InputError(
            f"{path} holds several splits; give the parquet of one, such as {path / 'test.parquet'}"
        )
    if (path / "dataset.json").is_file() and (path / "shards").is_dir():
        return LitData(str(path))
    if any((path / file).is_file() for file in SAVED):
        return HuggingFace(str(path))
    if any((path / "test").glob("*.tar")):
        return WebDataset(path)
    if (path / "val").is_dir() and _is_imagenet(path / "val"):
        return ImageNet(path)
    files = image_files(images_folder(path))
    if files and all(category_of(file) is not None for file in files):
        return GPR1200(path)
    has_classes = any(image_files(folder) or subfolders(folder) for folder in subfolders(path))
    return ClassFolders(path) if has_classes else None


def _is_imagenet(folder: Path) -> bool:
    names = [place.name for place in subfolders(folder)]
    flat = not names and any(file.name.startswith("ILSVRC2012_val_") for file in image_files(folder))
    return flat or (bool(names) and all(map(_WNID.fullmatch, names)))
