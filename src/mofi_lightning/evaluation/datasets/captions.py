"""Images with several captions each, in Karpathy's form: COCO, Flickr30k, Flickr8k."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, ImageFiles
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.sources.base import well_formed
from mofi_lightning.types import InputError

_HOW = (
    "get Karpathy's splits from https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip: "
    '{"images": [{"filename": ..., "split": "test", "sentences": [{"raw": ...}]}]}'
)


class CaptionsFile(EvaluationData):
    """Images with captions, listed in a JSON of Karpathy's form (Karpathy and Fei-Fei, CVPR 2015).

    Each image is an entity of its own. All its sentences are captions: 5 in Flickr, 5 to 7 in COCO.

    Args:
        path: the JSON, such as `dataset_flickr30k.json`.
        images: folder of the images; by default that of the JSON. Where the JSON names a folder of an image
            (COCO's `val2014`), the image may be in it.
        split: images of this split are evaluated.

    Example:
        ```yaml
        tasks:
          Flickr30k:
            data:
              class_path: CaptionsFile
              init_args: {path: data/flickr30k/dataset_flickr30k.json, images: data/flickr30k/images}
            evaluators:
              - class_path: ImageText
        ```
    """

    def __init__(self, path: Path, images: Path | None = None, split: str = "test") -> None:
        self.path = Path(path)
        self.images = images
        self.split = split

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        listing = _read(self.path)
        chosen = [image for image in listing if image.get("split") == self.split]
        if not chosen:
            splits = sorted({str(image.get("split")) for image in listing})
            raise InputError(f"{self.path} has no image of split {self.split!r}; it has {listed(splits)}")
        root = self.path.parent if self.images is None else Path(self.images)
        if not root.is_dir():
            raise InputError(f"no folder of images at {root}; unpack the images of {self.path.name} there")
        found = [_find(root, image, self.path) for image in chosen]
        missing = [name for name, file in found if file is None]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(found)} images of {self.path} are not below {root}: "
                f"{listed(missing)}; unpack the images there"
            )
        captions = [
            (sentence, name)
            for (name, _), image in zip(found, chosen, strict=True)
            for sentence in _sentences(image, self.path)
        ]
        silent = sorted({name for name, _ in found} - {name for _, name in captions})
        return EvaluationSet(
            name=f"{self.path.stem.removeprefix('dataset_')}/{self.split}",
            keys=[name for name, _ in found],
            images=ImageFiles([file for _, file in found if file is not None]),
            entities=[name for name, _ in found],
            captions=captions,
            notes=(f"{len(silent)} of {len(found)} images have no caption: {listed(silent)}",)
            if silent
            else (),
        )


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    try:
        listing = json.loads(path.read_bytes())["images"]
    except OSError as error:
        raise InputError(f"no captions at {path} ({error.strerror}); {_HOW}") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no list of images with captions ({error}); {_HOW}") from error
    if not isinstance(listing, list) or not all(isinstance(image, dict) for image in listing):
        raise InputError(f"{path} is no list of images with captions; {_HOW}")
    return listing


def _find(root: Path, image: Mapping[str, Any], path: Path) -> tuple[str, Path | None]:
    """Name of an image below `root`, and the file if it is there."""
    name, folder = image.get("filename"), image.get("filepath", "")
    if not isinstance(name, str) or not isinstance(folder, str) or not name:
        raise InputError(f"{path} has an image without a filename: {str(dict(image))[:80]}; {_HOW}")
    for place in dict.fromkeys((Path(name), Path(folder) / name)):
        # what leads out of the folder is no image of it
        if place.is_absolute() or ".." in place.parts or "\0" in name + folder:
            raise InputError(f"{path} names {str(place)!r}, which leads out of the folder of images")
        try:
            if (root / place).is_file():
                return well_formed(name), root / place
        except OSError as error:
            raise InputError(
                f"{path} names an image {well_formed(name)[:40]!r}, which can be no file ({error.strerror}); "
                f"{_HOW}"
            ) from error
    return well_formed(name), None


def _sentences(image: Mapping[str, Any], path: Path) -> list[str]:
    try:
        texts = [sentence["raw"].strip() for sentence in image["sentences"]]
    except (TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"the sentences of {image['filename']!r} in {path} cannot be read; {_HOW}"
        ) from error
    return [well_formed(text) for text in texts if text]
