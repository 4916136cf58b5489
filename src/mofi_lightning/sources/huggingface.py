"""Pairs of data sets on the Hugging Face hub, or in local folders that the package `datasets` reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofi_lightning.sources.base import Pair, Source, well_formed
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import datasets

# what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder
_SAVED = ("state.json", "dataset_dict.json")


class HuggingFaceSource(Source):
    """Pairs of a data set of the Hugging Face hub, streaming, or of a local folder.

    A folder may hold parquet, JSON lines, tars or images, as those on the hub do, or what `save_to_disk`
    wrote. Splits are those of the data set. Images are taken as they are stored; a missing text or image
    (null) is empty. Data sets that need code of their own are refused. HF_TOKEN opens private ones.

    Args:
        path: name on the hub ('org/name') or folder.
        name: of the configuration, where a data set has several.
        image: column of the images.
        text: column of the texts (string).
        key: column of the keys (string or integer), unique over all splits; default: the column `key` if all
            splits have one, otherwise the split and the number of the row.

    Raises:
        InputError: the package `datasets` is not installed, the data set cannot be reached or read, or a
            column is missing or holds something else.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        image: str = "image",
        text: str = "text",
        key: str | None = None,
    ) -> None:
        self._path = path
        self._folder = os.path.abspath(path) if Path(path).exists() else None
        with reading(self._path, "be loaded"):
            self._counts, self._datasets = _load(path, name)
            columns = {split: _columns(dataset) for split, dataset in self._datasets.items()}
        if key is None and all(_is_key(found.get("key")) for found in columns.values()):
            key = "key"
        self._wanted = {"image": image, "text": text, **({} if key is None else {"key": key})}
        for split, found in columns.items():
            for option, column in self._wanted.items():
                if column not in found:
                    raise InputError(
                        f"split {split!r} of {path} has no column {column!r} (it has {', '.join(found)}); "
                        f"name the right one with --{option}"
                    )

    @property
    def splits(self) -> Sequence[str]:
        """Those of the data set."""
        return tuple(self._datasets)

    def count(self, split: str) -> int | None:
        """Number of rows of `split`, where the data set says it."""
        return self._counts[split]

    def pairs(self, split: str) -> Iterator[Pair]:
        """The rows of `split`, in their order."""
        with reading(self._path, f"be read to the end of split {split!r}"):
            rows = self._datasets[split].select_columns(list(dict.fromkeys(self._wanted.values())))
            for row, example in enumerate(rows):
                where = f"row {row} of split {split!r} of {self._path}"
                image, text, *keys = (example[column] for column in self._wanted.values())
                if keys and not isinstance(keys[0], str | int):
                    raise self._wrong(where, "key", keys[0], "string or integer")
                if not isinstance(text, str | None):
                    raise self._wrong(where, "text", text, "string")
                key = str(keys[0]) if keys else f"{split}/{row}"
                yield Pair(well_formed(key), self._image(image, where), well_formed(text or ""))

    def _wrong(self, where: str, option: str, found: object, wanted: str) -> InputError:
        return InputError(
            f"{where} has a {type(found).__name__} as {self._wanted[option]!r}, no {wanted}; name the right "
            f"column with --{option}"
        )

    def _image(self, value: object, where: str) -> bytes:
        """What is stored: bytes, or a dictionary with bytes or else a path."""
        if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
            content, path = value["bytes"], value["path"]
            value = self._read(path, where) if content is None and path is not None else content
        if not isinstance(value, bytes | None):
            raise self._wrong(where, "image", value, "image")
        return value or b""

    def _read(self, path: str, where: str) -> bytes:
        """The bytes of a file of the data set, which may be in a zip file."""
        import datasets
        import pyarrow as pa

        *inner, file = path.split("::")
        is_ours = file.startswith("hf://")
        if self._folder is not None:
            inside = os.path.abspath(file).startswith(os.path.join(self._folder, ""))
            is_ours = inside and "://" not in file  # which abspath would take for a folder
        if not is_ours or any(not hop.startswith("zip://") for hop in inner):
            raise InputError(f"{where} names the image {path}, which is no part of the data set")
        feature = datasets.Image()
        stored = feature.embed_storage(pa.array([{"bytes": None, "path": path}], feature.pa_type))
        content: bytes = stored.field("bytes")[0].as_py()
        return content


@contextmanager
def reading(path: str, what: str, way_out: str = "") -> Iterator[None]:
    """Turns all that can go wrong in reading into one line; `datasets` itself says nothing.

    Args:
        path: of the data set.
        what: cannot be done with it, for instance "be loaded".
        way_out: how to go on.

    Raises:
        InputError: `datasets` is not installed, or raised what it may.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "data sets of Hugging Face need the package datasets: pip install 'mofi-lightning[huggingface]'"
        ) from error
    verbosity = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of the file formats, of the network, of what is in the data set
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"data set {path} cannot {what} ({reason}){way_out}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


def _load(path: str, name: str | None) -> tuple[dict[str, int | None], dict[str, datasets.IterableDataset]]:
    """Number of rows, if it is known, and rows of each split; images are not decoded."""
    import datasets

    if any((Path(path) / file).is_file() for file in _SAVED):
        saved = datasets.load_from_disk(path)
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        counts: dict[str, int | None] = {split: len(dataset) for split, dataset in splits.items()}
        streams = {split: dataset.to_iterable_dataset() for split, dataset in splits.items()}
    else:
        streams = dict(datasets.load_dataset(path, name, streaming=True))
        sizes = {split: (stream.info.splits or {}).get(split) for split, stream in streams.items()}
        counts = {split: size.num_examples if size else None for split, size in sizes.items()}
    return counts, {split: s.decode(False) if s.features else s for split, s in streams.items()}


def _columns(dataset: datasets.IterableDataset) -> dict[str, Any]:
    """Columns with their types, or the values of the first row where the types are not known beforehand."""
    return dict(dataset.features or next(iter(dataset), {}))


def _is_key(column: object) -> bool:
    """Whether a type or a value is one of keys."""
    kind = getattr(column, "dtype", type(column).__name__)
    return kind in ("string", "large_string", "str") or str(kind).lstrip("u").startswith("int")
