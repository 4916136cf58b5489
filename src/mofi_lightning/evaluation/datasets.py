"""Evaluation sets: labelled images, the names of their entities, and texts about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofi_lightning.data.texts import entity_text
from mofi_lightning.sources.folder import IMAGE_SUFFIXES
from mofi_lightning.sources.tables import KINDS, Kind, check_table, iterate
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_ROWS = 256
# GPR1200: category ids 0-199 are the first domain, 200-399 the second, ...
GPR1200_DOMAINS = ("Landmarks", "iNaturalist", "Sketch", "INSTRE", "SOP", "Faces")
GPR1200_PER_DOMAIN = 200


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
        descriptions: one line about an entity; missing where there is none.
        captions: texts that describe an entity, as (text, entity).
        domains: group of each image, where the set has any.
    """

    name: str
    keys: Sequence[str]
    images: Sequence[bytes]
    entities: Sequence[str]
    names: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
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
    by_key = {
        key: (entity, name, description)
        for key, shown_in, entity, name, description in _rows(
            truth, "truth file", "key", "split", "entity", "name", "description"
        )
        if shown_in == path.stem and entity is not None
    }
    labelled = [
        (key, image or b"") for key, image in _rows(path, "pairs file", "key", "image") if key in by_key
    ]
    if not labelled:
        raise InputError(f"{truth} says of no image of {path} what it shows; are both of the same run?")
    keys, images = zip(*labelled, strict=True)
    known = {entity: (name, description) for entity, name, description in map(by_key.__getitem__, keys)}
    captions = [
        (text, entity)
        for entity, (name, description) in known.items()
        for text in dict.fromkeys((name, entity_text(name, description)))
    ]
    return EvaluationSet(
        name=f"{path.parent.name}/{path.stem}",
        keys=keys,
        images=images,
        entities=[by_key[key][0] for key in keys],
        names={entity: name for entity, (name, _) in known.items()},
        descriptions={entity: description for entity, (_, description) in known.items() if description},
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
        for key, image in _rows(path, "pairs file", "key", "image"):
            yield key, image or b""
    else:
        raise InputError(f"no images at {path}; give a parquet with the columns key and image, or a folder")


def _image_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in IMAGE_SUFFIXES)


def _gpr1200_category(file: Path) -> int | None:
    category = file.name.split("_")[0]
    return int(category) if "_" in file.name and category.isdecimal() else None


def _rows(path: Path, title: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The checked rows of a file of a pairs folder; here keys need only match, so integers will do."""
    check_table(path, title, {name: KINDS[name] for name in columns} | {"key": Kind.ANY_KEY})
    for batch in iterate(path, columns, _BATCH_ROWS):
        yield from zip(*batch, strict=True)
