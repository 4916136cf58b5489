"""ILSVRC 2012, known as ImageNet-1k (Russakovsky et al., IJCV 2015), and sets in its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.class_tables import read_imagenet_names
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, ImageFiles
from mofi_lightning.evaluation.datasets.files import image_files, subfolders
from mofi_lightning.evaluation.datasets.folders import LabelledFiles, read_folders
from mofi_lightning.evaluation.datasets.hierarchy import read_hierarchy
from mofi_lightning.evaluation.datasets.imagenet_labels import flat_labels
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.evaluation.datasets.oddities import class_oddities
from mofi_lightning.types import InputError

_CLASSES = 1000
_VALIDATION_IMAGES = 50_000
_HOW = (
    "get ILSVRC 2012 from https://image-net.org/download.php and unpack it as val/WNID/*.JPEG and "
    "train/WNID/*.JPEG, WNID such as n01440764"
)


class ImageNet(EvaluationData):
    """ImageNet-1k: `val/n01440764/*.JPEG` and `train/n01440764/*.JPEG`.

    A flat `val` will do too, with `LOC_val_solution.csv` (of Kaggle's archive) or `ILSVRC2012_devkit_t12`
    beside it. Classes are called as OpenAI's CLIP calls them. The candidates are the classes whose folders
    are there, so that subsets (ImageNet-100) and sets in the same layout (ImageNet-A, -R, -Sketch) are
    measured as usual; notes tell what is missing of the 1,000 classes and 50,000 images. Templates are left
    to the evaluator.

    Args:
        path: the folder that holds `val` and `train`.
        split: folder in it that is evaluated.
        fit: folder in it to learn from (index of kNN, training set of probes); null for zero-shot only, which
            then does not read 140 GB. Where the folder is missing, a note says so.
        hierarchy: what is above the classes, such as WordNet's folder (see `read_hierarchy`).

    Example:
        ```yaml
        tasks:
          ImageNet:
            data:
              class_path: ImageNet
              init_args: {path: data/imagenet, fit: null}
            evaluators:
              - class_path: ZeroShot
        ```
    """

    def __init__(
        self, path: Path, split: str = "val", fit: str | None = "train", hierarchy: Path | None = None
    ) -> None:
        self.path = Path(path)
        self.split = split
        self.fit = fit
        self.hierarchy = hierarchy

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        folder = self.path / self.split
        if not folder.is_dir():
            raise InputError(f"ImageNet is not at {folder}; {_HOW}")
        shown = read_folders(folder) if subfolders(folder) else _read_flat(self.path, folder)
        notes, learnt = list(shown.notes), None
        if self.fit is not None and (self.path / self.fit).is_dir():
            learnt = read_folders(self.path / self.fit).fit(f"{self.path.resolve().name}/{self.fit}")
            notes += learnt.notes
        elif self.fit is not None:
            notes.append(f"there is no {self.path / self.fit}: no images to learn from")
        known = read_imagenet_names()
        folders = sorted({*shown.classes, *(learnt.entities if learnt is not None else ())})
        unknown = [name for name in folders if name not in known]
        if len(unknown) == len(folders):
            raise InputError(
                f"{folder} has no folder called as ImageNet's classes ({listed(unknown)}); {_HOW}"
            )
        if unknown:
            notes.append(f"{len(unknown)} folders are no classes of ImageNet-1k: {listed(unknown)}")
        if len(folders) < _CLASSES:
            notes.append(f"{len(folders):,} of {_CLASSES:,} classes are there; the others are no candidates")
        elif self.split == "val" and len(shown.files) != _VALIDATION_IMAGES:
            notes.append(f"{len(shown.files):,} of {_VALIDATION_IMAGES:,} validation images are there")
        names = {name: known.get(name, name) for name in folders}
        return EvaluationSet(
            name=self.path.resolve().name,
            keys=shown.keys,
            images=ImageFiles(shown.files),
            entities=shown.entities,
            names=names,
            fit=learnt,
            hierarchy={} if self.hierarchy is None else read_hierarchy(Path(self.hierarchy)),
            notes=(*notes, *class_oddities(shown.entities, names)),
        )


class ImageNetRetrieval(EvaluationData):
    """MOFI's retrieval on ImageNet's validation set: one query a class, the other images are the index.

    The paper (arXiv 2306.07952) leaves open which image of a class is the query; here it is the first by
    name.

    Args:
        path: the folder that holds `val` (see `ImageNet`).

    Example:
        ```yaml
        tasks:
          ImageNet retrieval:
            data:
              class_path: ImageNetRetrieval
              init_args: {path: data/imagenet}
            evaluators:
              - class_path: Retrieval
        ```
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        data = ImageNet(self.path, fit=None).open()
        first: dict[str, int] = {}
        for row in sorted(range(len(data.keys)), key=lambda row: Path(data.keys[row]).name):
            first.setdefault(data.entities[row], row)
        return replace(data, name=f"{data.name} retrieval", queries=sorted(first.values()))


def _read_flat(path: Path, folder: Path) -> LabelledFiles:
    files = image_files(folder)
    if not files:
        raise InputError(f"{folder} holds no images; {_HOW}")
    labels = flat_labels(path)
    unknown = [file.name for file in files if file.stem not in labels]
    if unknown:
        raise InputError(
            f"the labels of {path} leave out {len(unknown)} images of {folder}: {listed(unknown)}"
        )
    return LabelledFiles(
        keys=[file.name for file in files],
        files=files,
        entities=[labels[file.stem] for file in files],
        classes=sorted(set(labels.values())),
    )
