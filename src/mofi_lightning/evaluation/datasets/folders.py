"""A folder with one subfolder a class."""

from __future__ import annotations

from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, ImageFiles
from mofi_lightning.evaluation.datasets.files import image_files
from mofi_lightning.types import InputError


class ClassFolders(EvaluationData):
    """A folder with one subfolder a class, called as its folder, underscores read as spaces.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        path = self.path
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
        files = [file for folder in folders for file in image_files(folder)]
        if not files:
            raise InputError(f"{path} holds no subfolders of images, one a class")
        names = {file.parent.name: file.parent.name.replace("_", " ") for file in files}
        return EvaluationSet(
            name=path.name,
            keys=[str(file.relative_to(path)) for file in files],
            images=ImageFiles(files),
            entities=[file.parent.name for file in files],
            names=names,
            captions=[(name, entity) for entity, name in names.items()],
        )
