"""Pairs in folders that litdata has written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mofi_lightning.sources.base import Pair, Source, well_formed
from mofi_lightning.sources.litdata_folders import FORMATS, Field, find_folders, read_folder
from mofi_lightning.sources.tables import Kind
from mofi_lightning.types import InputError


class LitDataSource(Source):
    """Pairs of a folder of dictionaries that litdata has written, or of a data set of `mofi`.

    A folder with an `index.json` is the split `train`; in a folder of such folders, each is the split of its
    name. A missing text or image (None) is empty. Images are bytes or litdata's Jpeg, Image or File. A field
    of a dictionary in a dictionary has a name such as image.bytes.

    Args:
        path: folder that `litdata.optimize` has written, folder of such folders, or data set.
        image: field of the images.
        text: field of the texts.
        key: field of the keys (string or integer), unique over all splits; default: the field `key` if all
            splits have one, otherwise the split and the number of the row.

    Raises:
        InputError: nothing at `path`, a chunk is missing or cut short, a field is missing or holds something
            else, or the folder is compressed, encrypted, or not written by litdata.
    """

    def __init__(self, path: Path, image: str = "image", text: str = "text", key: str | None = None) -> None:
        self._folders = {split: read_folder(folder) for split, folder in find_folders(path).items()}
        folders = self._folders.values()
        if key is None and all(folder.format("key") in FORMATS[Kind.ANY_KEY] for folder in folders):
            key = "key"
        self._wanted = [Field("image", image, Kind.IMAGE), Field("text", text, Kind.TEXT)]
        if key is not None:
            self._wanted.append(Field("key", key, Kind.ANY_KEY))
        for folder in folders:
            folder.check(self._wanted)

    @property
    def splits(self) -> Sequence[str]:
        """`train`, or the names of the folders, sorted."""
        return tuple(self._folders)

    def count(self, split: str) -> int:
        """Number of rows of `split`, from its index."""
        return sum(self._folders[split].chunks.values())

    def pairs(self, split: str) -> Iterator[Pair]:
        """The rows of `split`, in their order."""
        for row, (image, text, *keys) in enumerate(self._folders[split].rows(self._wanted)):
            if None in keys:
                raise InputError(f"row {row} of split {split!r} has no key; name another field with --key")
            key = str(keys[0]) if keys else f"{split}/{row}"
            yield Pair(well_formed(key), image or b"", well_formed(text or ""))
