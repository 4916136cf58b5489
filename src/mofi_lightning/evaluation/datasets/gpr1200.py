"""GPR1200: six domains of 200 categories of ten images (Schall et al., MMM 2022)."""

from __future__ import annotations

from pathlib import Path

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, ImageFiles
from mofi_lightning.evaluation.datasets.files import image_files
from mofi_lightning.types import InputError

# category ids 0-199 are the first domain, 200-399 the second, ...
DOMAINS = ("Landmarks", "iNaturalist", "Sketch", "INSTRE", "SOP", "Faces")
PER_DOMAIN = 200


class GPR1200(EvaluationData):
    """A folder of GPR1200: `{category}_{name}.jpg`, domains in the order of category ids.

    Args:
        path: the folder with the images.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        if not self.path.is_dir():
            raise InputError(
                f"GPR1200 is not at {self.path}; get it from https://visual-computing.com/project/GPR1200 and "
                "unpack its images there"
            )
        numbered = [(category_of(file), file) for file in image_files(self.path)]
        images = sorted((category, file) for category, file in numbered if category is not None)
        if not images:
            raise InputError(f"{self.path} holds no image called CATEGORY_NAME.jpg, as those of GPR1200 are")
        domains = [category // PER_DOMAIN for category, _ in images]
        return EvaluationSet(
            name=self.path.name,
            keys=[file.name for _, file in images],
            images=ImageFiles([file for _, file in images]),
            entities=[f"{category:04d}" for category, _ in images],
            # more categories than GPR1200 has: another set that uses its names
            domains=[DOMAINS[n] for n in domains] if max(domains) < len(DOMAINS) else None,
        )


def category_of(file: Path) -> int | None:
    """The category in a file's name; None where there is none."""
    category = file.name.split("_")[0]
    return int(category) if "_" in file.name and category.isdecimal() else None
