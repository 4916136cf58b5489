"""Keys and images of whatever holds them: parquet, tars, what litdata has written, folders of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mofi_lightning.sources.folder import FolderSource
from mofi_lightning.sources.litdata_folders import Field, find_folders, read_folder
from mofi_lightning.sources.parquet import split_files
from mofi_lightning.sources.tables import Kind, check_table, iterate
from mofi_lightning.sources.webdataset import WebDatasetSource
from mofi_lightning.types import InputError

_TARS = (".tar", ".tar.gz", ".tgz")
_BATCH_ROWS = 64

T = TypeVar("T")


@dataclass(frozen=True)
class ImageStream:
    """Images that are read one after the other, in the same order every time.

    Attributes:
        read: begins anew; gives the key and the encoded file of each, empty where it is missing.
        count: how many, where it is known beforehand.
    """

    read: Callable[[], Iterator[tuple[str, bytes]]]
    count: int | None


def open_images(where: str, split: str = "") -> ImageStream:
    """Open a source of images by what is there.

    Args:
        where: a parquet file, or a folder of one or more a split, with the columns key and image; a tar, a
            folder of tars, or a pattern such as 'tars/{00000..00099}.tar'; a folder that litdata has written,
            or a data set of `mofi`; or a folder with image files below it, whose keys are their paths.
        split: where there are several.

    Raises:
        InputError: nothing is there, it holds something else, or which split is meant is not clear.
    """
    path = Path(where)
    if where.endswith(_TARS) or "{" in where or "*" in where:
        return _of_tars(where, split)
    if not path.exists():
        raise InputError(
            f"no images at {where}; give a parquet file, tars, a folder that litdata has written, or a "
            "folder of image files"
        )
    if path.is_file() or any(path.glob("*.parquet")):
        return _of_parquet(path, split)
    if any((place / "index.json").is_file() for place in (path, *path.glob("*"), *path.glob("*/shards"))):
        return _of_litdata(path, split)
    if any(file.name.endswith(_TARS) for folder in (path, *path.glob("*/")) for file in folder.glob("*")):
        return _of_tars(where, split)
    source = FolderSource(path)
    if split:
        raise InputError(
            f"{where} is a folder of image files, which has no splits; leave out --split {split}"
        )
    return ImageStream(
        lambda: ((pair.key, pair.image) for pair in source.pairs("train")), source.count("train")
    )


def _of_tars(where: str, split: str) -> ImageStream:
    source = WebDatasetSource(where)
    chosen = _choose({name: name for name in source.splits}, split, where)
    return ImageStream(
        lambda: ((pair.key, pair.image) for pair in source.pairs(chosen)), source.count(chosen)
    )


def _of_parquet(path: Path, split: str) -> ImageStream:
    files = _choose(split_files(path), split, str(path))
    columns = {"key": Kind.ANY_KEY, "image": Kind.STORED_IMAGE}
    way_out = "give parquet with the columns key and image"
    counts = [check_table(file, "file", columns, way_out).num_rows for file in files]

    def read() -> Iterator[tuple[str, bytes]]:
        for file in files:
            for batch in iterate(file, ("key", "image"), _BATCH_ROWS):
                for key, image in zip(*batch, strict=True):
                    yield str(key), (image["bytes"] if isinstance(image, dict) else image) or b""

    return ImageStream(read, sum(counts))


def _of_litdata(path: Path, split: str) -> ImageStream:
    folder = read_folder(_choose(find_folders(path), split, str(path)))
    wanted = [Field("key", "key", Kind.ANY_KEY), Field("image", "image", Kind.IMAGE)]
    for one in wanted:
        if one.field not in folder.fields:
            raise InputError(
                f"{folder.path} has no field {one.field!r} (it has {', '.join(folder.fields)}); "
                "`mofi pairs litdata` makes parquet of it, with whatever names"
            )
    return ImageStream(
        lambda: ((str(key), image or b"") for key, image in folder.rows(wanted)), sum(folder.chunks.values())
    )


def _choose(splits: Mapping[str, T], split: str, where: str) -> T:
    names = ", ".join(splits)
    if not split and len(splits) > 1:
        raise InputError(f"{where} has the splits {names}; choose one with --split")
    if split and split not in splits:
        raise InputError(f"{where} has no split {split!r}; it has {names}")
    return splits[split] if split else next(iter(splits.values()))
