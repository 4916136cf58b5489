"""A folder with one subfolder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.class_tables import read_class_names, read_seen
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, ImageFiles
from mofi_lightning.evaluation.datasets.files import find_images, image_files, subfolders
from mofi_lightning.evaluation.datasets.hierarchy import read_hierarchy
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.evaluation.datasets.oddities import class_oddities, contradictions
from mofi_lightning.sources.base import well_formed
from mofi_lightning.types import InputError

# the first of those that are there is evaluated
_EVALUATED = ("test", "val", "validation", "valid")
_FIT = "train"


class ClassFolders(EvaluationData):
    """A folder with one subfolder a class, called as its folder, underscores read as spaces.

    Images may lie deeper in the folder of their class. A folder whose only subfolders are splits (`test`,
    `val` or `validation`, and `train`) is recognised: the first of these is evaluated, and `train` is learnt
    from. A class whose folder is empty, and one that only `names` has, stays a candidate for zero-shot
    classification. Hidden files, links to folders and formats that are not decoded (TIFF, BMP, PPM) are left
    out.

    Args:
        path: the folder.
        fit: another folder of the same classes, to learn from; by default the `train` in `path`, if it is
            there.
        names: table of folder<TAB>name, a line a class; a class that it leaves out is called as its folder.
        hierarchy: what is above the classes (see `read_hierarchy`).
        seen: text file with a class (folder) a line: those seen in training; the others are for zero-shot
            learning.

    Example:
        ```yaml
        tasks:
          flowers:
            data:
              class_path: ClassFolders
              init_args: {path: data/flowers/test, fit: data/flowers/train, names: data/flowers/names.tsv}
        ```
    """

    def __init__(
        self,
        path: Path,
        fit: Path | None = None,
        names: Path | None = None,
        hierarchy: Path | None = None,
        seen: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.fit = fit
        self.names = names
        self.hierarchy = hierarchy
        self.seen = seen

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        path, fit, notes = self.path, self.fit, []
        if not path.is_dir():
            raise InputError(f"no folder at {path}; bring one with a subfolder of images a class")
        splits = splits_of(path)
        if splits:
            path = self.path / splits[0]
            if fit is None and (self.path / _FIT).is_dir():
                fit = self.path / _FIT
            if len(splits) > 1:
                notes.append(f"{splits[0]} is evaluated; {listed(splits[1:])} is left out")
        shown = read_folders(path)
        _refuse_one_class(path, shown)
        learnt = None if fit is None else read_folders(Path(fit))
        folders = {*shown.classes, *(learnt.classes if learnt is not None else ())}
        names = {folder: folder.replace("_", " ") for folder in folders}
        if self.names is not None:
            given = read_class_names(Path(self.names))
            missing = sorted(folders - given.keys())
            if missing:
                notes.append(
                    f"{self.names} has no name for {len(missing)} of {len(folders)} folders: "
                    f"{listed(missing)}"
                )
            names |= given
        return EvaluationSet(
            name=self.path.resolve().name,
            keys=shown.keys,
            images=ImageFiles(shown.files),
            entities=shown.entities,
            names=names,
            captions=[(names[entity], entity) for entity in dict.fromkeys(shown.entities)],
            fit=None if learnt is None else learnt.fit(f"{self.path.resolve().name}/{_FIT}"),
            hierarchy={} if self.hierarchy is None else read_hierarchy(Path(self.hierarchy)),
            seen=frozenset() if self.seen is None else read_seen(Path(self.seen), names.keys()),
            notes=(
                *notes,
                *shown.notes,
                *class_oddities(shown.entities, names),
                *contradictions(shown.files, shown.entities),
            ),
        )


@dataclass(frozen=True)
class LabelledFiles:
    """Image files with the folders of their classes.

    Attributes:
        keys: paths below the common folder.
        files: the images.
        entities: name of the folder of each.
        classes: names of all folders, those without images too.
        notes: what was left out.
    """

    keys: list[str]
    files: list[Path]
    entities: list[str]
    classes: list[str]
    notes: tuple[str, ...] = ()

    def fit(self, name: str) -> EvaluationSet:
        """As the set that probes learn from."""
        return EvaluationSet(name, self.keys, ImageFiles(self.files), self.entities, notes=self.notes)


def read_folders(path: Path) -> LabelledFiles:
    """Find the images in the class folders of `path`.

    Raises:
        InputError: it has no subfolders with images.
    """
    folders = subfolders(path)
    found = [(folder, find_images(folder)) for folder in folders]
    labelled = [(well_formed(folder.name), file) for folder, images in found for file in images.files]
    if not labelled:
        raise InputError(f"{path} holds no subfolders of images, one a class")
    notes = []
    left_out = [file.relative_to(path) for _, images in found for file in images.left_out]
    if left_out:
        notes.append(
            f"{len(left_out)} files are left out (formats that are not decoded, links that lead to no file): "
            f"{listed(left_out)}"
        )
    deeper = [file.relative_to(path) for _, file in labelled if len(file.relative_to(path).parts) > 2]
    if deeper:
        notes.append(f"{len(deeper)} images lie deeper in the folder of their class, such as {deeper[0]}")
    unsorted = image_files(path)
    if unsorted:
        notes.append(f"{len(unsorted)} images are in no class's folder: {listed(f.name for f in unsorted)}")
    return LabelledFiles(
        keys=[well_formed(file.relative_to(path).as_posix()) for _, file in labelled],
        files=[file for _, file in labelled],
        entities=[entity for entity, _ in labelled],
        classes=[well_formed(folder.name) for folder in folders],
        notes=tuple(notes),
    )


def _refuse_one_class(path: Path, shown: LabelledFiles) -> None:
    """Whatever is found among images of one class is right: every measure would be perfect."""
    classes = sorted(set(shown.entities))
    if len(classes) > 1:
        return
    folder = path / classes[0]
    inner = [place for place in subfolders(folder) if find_images(place).files]
    meant = f" (did you mean {folder}?)" if len(inner) > 1 else ""
    raise InputError(
        f"{path} has images of one class only, {classes[0]!r}{meant}; give a folder with a subfolder of "
        "images for each of two classes or more"
    )


def splits_of(path: Path) -> list[str]:
    """Names of the splits to evaluate in `path`, the first first; none where its subfolders are classes.

    Raises:
        InputError: there is a split to learn from only.
    """
    names = {folder.name for folder in subfolders(path)}
    splits = [name for name in _EVALUATED if name in names]
    train = path / _FIT
    if names == {_FIT} and subfolders(train) and not image_files(train):
        raise InputError(f"{path} holds the split {_FIT} only; give {train}, or bring {path / _EVALUATED[0]}")
    # a class may be called `train`: then it has neighbours that are no splits, or images of its own
    is_split = bool(splits) and names <= {*_EVALUATED, _FIT} and bool(subfolders(path / splits[0]))
    return splits if is_split else []
