"""Labelled images of the Hugging Face hub, or of local folders that the package `datasets` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, LazyImages
from mofi_lightning.evaluation.datasets.oddities import class_oddities
from mofi_lightning.sources.base import well_formed
from mofi_lightning.sources.huggingface import reading
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import datasets

_WAY_OUT = "; give a folder, or a name on https://huggingface.co/datasets"
# what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder
SAVED = ("state.json", "dataset_dict.json")


class HuggingFace(EvaluationData):
    """Labelled images of a data set that the package `datasets` reads.

    It comes with `pip install 'mofi-lightning[huggingface]'`. Classes are called as the data set's
    `ClassLabel` calls them, underscores read as spaces; labels that are strings are names, plain integers
    have none. Rows without a label (null, or -1) are left out, and a note counts them. Images are taken as
    they are stored. HF_TOKEN opens private data sets; those that need code of their own are refused.

    Args:
        path: name on the hub ('org/name'), or a folder of parquet files or images, or of `save_to_disk`.
        image_column: column of the images.
        label_column: column of the labels.
        split: that is evaluated.
        fit_split: to learn from; null where there is none.
        name: of the configuration, where a data set has several.

    Example:
        ```yaml
        tasks:
          beans:
            data:
              class_path: HuggingFace
              init_args: {path: AI-Lab-Makerere/beans, label_column: labels, fit_split: train}
        ```
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        label_column: str = "label",
        split: str = "test",
        fit_split: str | None = None,
        name: str | None = None,
    ) -> None:
        self.path = str(path)
        self.image_column = image_column
        self.label_column = label_column
        self.split = split
        self.fit_split = fit_split
        self.name = name

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        keys, images, entities, names, notes = self._labelled(self.split)
        learnt = None
        if self.fit_split is not None:
            fit_keys, fit_images, fit_entities, fit_names, fit_notes = self._labelled(self.fit_split)
            learnt = EvaluationSet(
                f"{self.path}/{self.fit_split}", fit_keys, fit_images, fit_entities, notes=tuple(fit_notes)
            )
            names, notes = fit_names | names, notes + fit_notes
        return EvaluationSet(
            name=self.path.rstrip("/").rpartition("/")[2],
            keys=keys,
            images=images,
            entities=entities,
            names=names,
            captions=[(names[entity], entity) for entity in dict.fromkeys(entities) if entity in names],
            fit=learnt,
            notes=(*notes, *class_oddities(entities, names)),
        )

    def _labelled(self, split: str) -> tuple[list[str], _StoredImages, list[str], dict[str, str], list[str]]:
        """Keys, images, classes, names and notes of the rows of `split` that have a label."""
        rows = self._rows(split)
        for option, column in (("image_column", self.image_column), ("label_column", self.label_column)):
            if column not in rows.column_names:
                raise InputError(
                    f"split {split!r} of {self.path} has no column {column!r} (it has "
                    f"{', '.join(rows.column_names)}); name the right one with {option}"
                )
        labels = list(rows[self.label_column])
        wrong = next((label for label in labels if not isinstance(label, int | str | None)), None)
        if wrong is not None:
            raise InputError(
                f"column {self.label_column!r} of {self.path} holds a {type(wrong).__name__}, no class; name "
                "another with label_column"
            )
        kept = [row for row, label in enumerate(labels) if label is not None and label != -1 and label != ""]
        if not kept:
            raise InputError(f"no row of split {split!r} of {self.path} has a label; name another with split")
        called = getattr(rows.features[self.label_column], "names", None)
        entities = [_entity(labels[row]) for row in kept]
        if called is not None:
            names = {_entity(number): name.replace("_", " ") for number, name in enumerate(called)}
        else:
            names = {_entity(label): label for row in kept if isinstance(label := labels[row], str)}
        left_out = len(labels) - len(kept)
        notes = [f"{left_out} of {len(labels)} rows of split {split!r} have no label and are left out"]
        images = _StoredImages(self.path, rows.select_columns([self.image_column]), self.image_column, kept)
        return [f"{split}/{row}" for row in kept], images, entities, names, notes if left_out else []

    def _rows(self, split: str) -> datasets.Dataset:
        with reading(self.path, "be read", _WAY_OUT):
            import datasets

            if any((Path(self.path) / file).is_file() for file in SAVED):
                saved = datasets.load_from_disk(self.path)
                splits = (
                    saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
                )
                if split not in splits:
                    raise InputError(f"{self.path} has no split {split!r}; it has {', '.join(splits)}")
                rows = splits[split]
            else:
                rows = datasets.load_dataset(self.path, self.name, split=split)
            kind = rows.features.get(self.image_column)
            if isinstance(kind, datasets.Image):
                rows = rows.cast_column(self.image_column, datasets.Image(decode=False))
            return rows


class _StoredImages(LazyImages[int]):
    """Images of some rows, as they are stored."""

    def __init__(self, path: str, rows: datasets.Dataset, column: str, kept: Sequence[int]) -> None:
        super().__init__(kept)
        self._path = path
        self._rows = rows
        self._column = column

    def read(self, place: int) -> bytes:
        value = self._rows[place][self._column]
        if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
            content, file = value["bytes"], value["path"]
            value = self._read_file(file, place) if content is None and file is not None else content
        if not isinstance(value, bytes | None):
            raise InputError(
                f"row {place} of {self._path} has a {type(value).__name__} as {self._column!r}, no image; "
                "name another column with image_column"
            )
        return value or b""

    def _read_file(self, file: str, row: int) -> bytes:
        """A file of the data set: in its folder, or where `datasets` keeps what it downloads."""
        import datasets

        homes = [self._path] if Path(self._path).is_dir() else [datasets.config.HF_CACHE_HOME]
        inside = any(os.path.abspath(file).startswith(os.path.join(os.path.abspath(h), "")) for h in homes)
        if "://" in file or not inside:
            raise InputError(
                f"row {row} of {self._path} names the image {file}, which is no part of the data set"
            )
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise InputError(f"image {file} of {self._path} cannot be read ({error.strerror})") from error


def _entity(label: int | str) -> str:
    return f"{label:04d}" if isinstance(label, int) else well_formed(label)
