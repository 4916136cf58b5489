"""From a path on the command line to an evaluation data set, by what is there."""

from __future__ import annotations

from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.files import image_files
from mofi_lightning.evaluation.datasets.folders import ClassFolders
from mofi_lightning.evaluation.datasets.gpr1200 import GPR1200, category_of
from mofi_lightning.evaluation.datasets.pairs import PairsFile
from mofi_lightning.types import InputError


def at_path(path: Path | str) -> EvaluationData:
    """The data set at `path`: the parquet of a split of a pairs folder, GPR1200, or one subfolder a class.

    Raises:
        InputError: nothing there, or neither of the three.
    """
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        return PairsFile(path)
    if not path.exists():
        raise InputError(
            f"no evaluation set at {path}; give the parquet of a split (`mofi pairs` writes them), a folder "
            "of GPR1200 (https://visual-computing.com/project/GPR1200) or a folder with one subfolder a class"
        )
    if path.is_dir():
        files = image_files(path)
        if files and all(category_of(file) is not None for file in files):
            return GPR1200(path)
        if any(folder.is_dir() and image_files(folder) for folder in path.iterdir()):
            return ClassFolders(path)
    raise InputError(
        f"{path} is no evaluation set: neither a parquet file, nor images called CATEGORY_NAME.jpg, nor "
        "subfolders of images"
    )
