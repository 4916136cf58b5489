"""Evaluation sets: labelled images, the names of their entities, and texts about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mofi_lightning.data.texts import entity_text
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torch import Tensor

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
# GPR1200: category ids 0-199 are the first domain, 200-399 the second, ...
GPR1200_DOMAINS = ("Landmarks", "iNaturalist", "Sketch", "INSTRE", "SOP", "Faces")
GPR1200_PER_DOMAIN = 200


class ParquetImages(Sequence[bytes]):
    """The `image` column of a table as bytes, copied only when read; a missing image is empty."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # overloads of Sequence add nothing here
        if isinstance(row, slice):
            return [image or b"" for image in self._column[row].to_pylist()]
        return self._column[row].as_py() or b""


class ImageFiles(Sequence[bytes]):
    """Image files, read when asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # overloads of Sequence add nothing here
        if isinstance(row, slice):
            return [path.read_bytes() for path in self.paths[row]]
        return self.paths[row].read_bytes()


@dataclass(frozen=True)
class EvaluationSet:
    """N labelled images.

    Attributes:
        name: for titles.
        keys: of the images.
        images: encoded files, read one at a time.
        entities: what each image shows.
        names: preferred name of each entity; the entity itself where it is missing.
        captions: texts that describe an entity, as (text, entity).
        domains: group of each image, where the set has any.
    """

    name: str
    keys: Sequence[str]
    images: Sequence[bytes]
    entities: Sequence[str]
    names: dict[str, str] = field(default_factory=dict)
    captions: Sequence[tuple[str, str]] = ()
    domains: Sequence[str] | None = None

    @cached_property
    def classes(self) -> list[str]:
        """The C entities that occur, sorted."""
        return sorted(set(self.entities))

    @property
    def class_names(self) -> list[str]:
        """Names of `classes`."""
        return [self.names.get(entity, entity) for entity in self.classes]

    def labels(self, entities: Sequence[str] | None = None) -> Tensor:
        """Rows of `classes`, int64, of the images or of the given entities."""
        import torch

        number = {entity: i for i, entity in enumerate(self.classes)}
        wanted = self.entities if entities is None else entities
        return torch.tensor([number[entity] for entity in wanted], dtype=torch.long)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the images' content and order, for caches."""
        digest = hashlib.blake2b(digest_size=16)
        for image in self.images:
            digest.update(hashlib.blake2b(image, digest_size=16).digest())
        return digest.hexdigest()


def open_evaluation_set(path: Path | str) -> EvaluationSet:
    """Open a split of a pairs folder (`.../test.parquet`), a GPR1200 folder or one subfolder a class.

    Raises:
        InputError: nothing there, or neither of the three.
    """
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        return from_pairs(path)
    if not path.exists():
        raise InputError(
            f"no evaluation set at {path}; give the parquet of a split (`mofi pairs` writes them), a folder "
            "of GPR1200 (https://visual-computing.com/project/GPR1200) or a folder with one subfolder a class"
        )
    if path.is_dir():
        files = _image_files(path)
        if files and all(_gpr1200_category(file) is not None for file in files):
            return from_gpr1200(path)
        if any(folder.is_dir() and _image_files(folder) for folder in path.iterdir()):
            return from_class_folders(path)
    raise InputError(
        f"{path} is no evaluation set: neither a parquet file, nor images called CATEGORY_NAME.jpg, nor "
        "subfolders of images"
    )


def from_pairs(path: Path) -> EvaluationSet:
    """A split of a pairs folder, with labels and names from the `truth.parquet` beside it."""
    truth = path.parent / "truth.parquet"
    if not truth.is_file():
        raise InputError(
            f"{truth} is missing: it says what the images show; `mofi pairs` writes it where the source knows"
        )
    pairs = _read_table(path, "key", "image")
    shown = _read_table(truth, "key", "split", "entity", "name", "description").to_pylist()
    by_key = {row["key"]: row for row in shown if row["split"] == path.stem and row["entity"] is not None}
    keys = pairs["key"].to_pylist()
    rows = [row for row, key in enumerate(keys) if key in by_key]
    if not rows:
        raise InputError(f"{truth} says of no image of {path} what it shows; are both of the same run?")
    labels = [by_key[keys[row]] for row in rows]
    known = {label["entity"]: label for label in labels}
    captions = [
        (text, entity)
        for entity, label in known.items()
        for text in dict.fromkeys((label["name"], entity_text(label["name"], label["description"])))
    ]
    return EvaluationSet(
        name=f"{path.parent.name}/{path.stem}",
        keys=[keys[row] for row in rows],
        images=ParquetImages(pairs["image"].take(rows)),
        entities=[label["entity"] for label in labels],
        names={entity: label["name"] for entity, label in known.items()},
        captions=captions,
    )


def from_gpr1200(path: Path) -> EvaluationSet:
    """A folder of GPR1200: `{category}_{name}.jpg`, six domains of 200 categories in the order of ids."""
    numbered = [(_gpr1200_category(file), file) for file in _image_files(path)]
    images = sorted((category, file) for category, file in numbered if category is not None)
    domains = [category // GPR1200_PER_DOMAIN for category, _ in images]
    return EvaluationSet(
        name=path.name,
        keys=[file.name for _, file in images],
        images=ImageFiles([file for _, file in images]),
        entities=[f"{category:04d}" for category, _ in images],
        # more categories than GPR1200 has: another set that uses its names
        domains=[GPR1200_DOMAINS[n] for n in domains] if max(domains) < len(GPR1200_DOMAINS) else None,
    )


def from_class_folders(path: Path) -> EvaluationSet:
    """A folder with one subfolder a class; the class is called as its folder, underscores read as spaces."""
    files = [file for folder in sorted(path.iterdir()) if folder.is_dir() for file in _image_files(folder)]
    names = {file.parent.name: file.parent.name.replace("_", " ") for file in files}
    return EvaluationSet(
        name=path.name,
        keys=[str(file.relative_to(path)) for file in files],
        images=ImageFiles(files),
        entities=[file.parent.name for file in files],
        names=names,
        captions=[(name, entity) for entity, name in names.items()],
    )


def iterate_images(path: Path) -> Iterator[tuple[str, bytes]]:
    """Keys and encoded files of a pairs parquet, or of all images below a folder, in a fixed order.

    Raises:
        InputError: nothing there, or no images in it.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        yield from ((str(file.relative_to(path)), file.read_bytes()) for file in files)
    elif path.suffix == ".parquet" and path.is_file():
        for batch in _open_parquet(path, "key", "image").iter_batches(256, columns=["key", "image"]):
            images = (image or b"" for image in batch["image"].to_pylist())
            yield from zip(batch["key"].to_pylist(), images, strict=True)
    else:
        raise InputError(f"no images at {path}; give a parquet with the columns key and image, or a folder")


def _image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_SUFFIXES)


def _gpr1200_category(file: Path) -> int | None:
    category = file.name.split("_")[0]
    return int(category) if "_" in file.name and category.isdecimal() else None


def _read_table(path: Path, *columns: str) -> pa.Table:
    return _open_parquet(path, *columns).read(columns=list(columns))


def _open_parquet(path: Path, *columns: str) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error
    present = file.schema_arrow.names
    missing = [column for column in columns if column not in present]
    if missing:
        raise InputError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(present)}); "
            "`mofi pairs` writes the right ones"
        )
    return file
