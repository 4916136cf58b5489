"""GPR1200: six domains of 200 categories of ten images (Schall et al., MMM 2022)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, ImageFiles
from mofi_lightning.evaluation.datasets.files import image_files
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.sources.base import well_formed
from mofi_lightning.types import InputError

# category ids 0-199 are the first domain, 200-399 the second, ...
DOMAINS = ("Landmarks", "iNaturalist", "Sketch", "INSTRE", "SOP", "Faces")
PER_DOMAIN = 200
_CATEGORIES = PER_DOMAIN * len(DOMAINS)
_PER_CATEGORY = 10


class GPR1200(EvaluationData):
    """A folder of GPR1200: `{category}_{name}.jpg`, domains in the order of category ids.

    A copy that is not whole is measured as it is, and a note says so. Categories beyond 1,199 are of another
    set that uses such names: it has no domains.

    Args:
        path: the folder with the images, or the one that holds them in its folder `images`, as the archive
            does.

    Example:
        ```yaml
        tasks:
          GPR1200:
            data:
              class_path: GPR1200
              init_args: {path: data/gpr1200}
            evaluators:
              - class_path: Retrieval
        ```
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        if not self.path.is_dir():
            raise InputError(
                f"GPR1200 is not at {self.path}; get it from https://visual-computing.com/project/GPR1200 "
                "and unpack its images there"
            )
        folder = images_folder(self.path)
        numbered = [(category_of(file), file) for file in image_files(folder)]
        images = sorted((category, file) for category, file in numbered if category is not None)
        if not images:
            raise InputError(
                f"{folder} holds no image called CATEGORY_NAME.jpg, as those of GPR1200 are; get it from "
                "https://visual-computing.com/project/GPR1200"
            )
        unnumbered = [file.name for category, file in numbered if category is None]
        left_out = [f"{len(unnumbered)} images are not called CATEGORY_NAME: {listed(unnumbered)}"]
        categories = [category for category, _ in images]
        is_gpr = max(categories) < _CATEGORIES
        return EvaluationSet(
            name=self.path.resolve().name,
            keys=[well_formed(file.name) for _, file in images],
            images=ImageFiles([file for _, file in images]),
            entities=[f"{category:04d}" for category in categories],
            domains=[DOMAINS[category // PER_DOMAIN] for category in categories] if is_gpr else None,
            notes=(*(left_out if unnumbered else ()), *(_gaps(categories) if is_gpr else ())),
        )


def _gaps(categories: Sequence[int]) -> list[str]:
    """What a partial copy lacks."""
    counts = Counter(categories)
    notes = []
    if len(counts) < _CATEGORIES:
        notes.append(f"{len(counts):,} of GPR1200's {_CATEGORIES:,} categories are there")
    odd = sorted(category for category, count in counts.items() if count != _PER_CATEGORY)
    if odd:
        shown = listed(f"{category:04d} has {counts[category]}" for category in odd)
        notes.append(f"{len(odd):,} categories have not the {_PER_CATEGORY} images of GPR1200's: {shown}")
    return notes


def images_folder(path: Path) -> Path:
    """`path`, or its folder `images` where that is what holds numbered images."""
    inner = path / "images"
    if inner.is_dir() and not any(category_of(file) is not None for file in image_files(path)):
        return inner
    return path


def category_of(file: Path) -> int | None:
    """The category in a file's name; None where there is none."""
    category, underscore, _ = file.name.partition("_")
    return int(category) if underscore and category.isdecimal() else None
