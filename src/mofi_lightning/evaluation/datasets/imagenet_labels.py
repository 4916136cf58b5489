"""Labels of ImageNet's validation images where these lie in one folder."""

from __future__ import annotations

import csv
from pathlib import Path

from mofi_lightning.evaluation.datasets.class_tables import read_lines
from mofi_lightning.types import InputError

_KAGGLE = "LOC_val_solution.csv"
_DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"


def flat_labels(path: Path) -> dict[str, str]:
    """WordNet id by the name of the image (`ILSVRC2012_val_00000001`).

    Args:
        path: folder that holds Kaggle's `LOC_val_solution.csv` or the devkit of ILSVRC 2012.

    Raises:
        InputError: it holds neither, or they are damaged.
    """
    if (path / _KAGGLE).is_file():
        return _of_kaggle(path / _KAGGLE)
    if (path / _DEVKIT).is_dir():
        return _of_devkit(path / _DEVKIT)
    raise InputError(
        f"the images of {path} are in no folders of their classes, and neither {_KAGGLE} (of Kaggle's "
        f"archive) nor {_DEVKIT.parent} (https://image-net.org/download.php) is there; bring one"
    )


def _of_kaggle(file: Path) -> dict[str, str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
                raise InputError(f"{file} has no columns ImageId and PredictionString; download it anew")
            boxes = {row["ImageId"]: (row["PredictionString"] or "").split() for row in reader}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}); download it anew") from error
    # class and box of each object; all of one image are of one class
    empty = next((image for image, words in boxes.items() if not words), None)
    if empty is not None:
        raise InputError(f"{file} has no class for {empty}; download it anew")
    return {image: words[0] for image, words in boxes.items()}


def _of_devkit(folder: Path) -> dict[str, str]:
    from scipy.io import loadmat

    truth, meta = folder / "ILSVRC2012_validation_ground_truth.txt", folder / "meta.mat"
    numbers = read_lines(truth, "ground truth")
    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        labels = [wnids[int(number)] for number in numbers]
    except Exception as error:  # damaged bytes make the parser fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{truth} and {meta} cannot be read ({reason}); download the devkit anew") from error
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(labels, 1)}
