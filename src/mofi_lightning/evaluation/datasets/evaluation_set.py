"""An opened evaluation set: images, what they show, and what is known about it."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from torch import Tensor


_Place = TypeVar("_Place")


class LazyImages(Sequence[bytes], Generic[_Place]):
    """Encoded images, each read from its place when asked for.

    Args:
        places: of the images, one each.
    """

    def __init__(self, places: Sequence[_Place]) -> None:
        self.places = places

    @abstractmethod
    def read(self, place: _Place) -> bytes:
        """The encoded image at a place.

        Raises:
            InputError: it cannot be read, or is gone since the set was opened.
        """

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> list[bytes]: ...
    def __getitem__(self, row: int | slice) -> bytes | list[bytes]:
        if isinstance(row, slice):
            return [self.read(place) for place in self.places[row]]
        return self.read(self.places[row])


class ImageFiles(LazyImages[Path]):
    """Image files."""

    def read(self, place: Path) -> bytes:
        """See `LazyImages`."""
        try:
            return place.read_bytes()
        except OSError as error:
            raise InputError(
                f"image {place} cannot be read ({error.strerror}); mend it or take it out"
            ) from error


@dataclass(frozen=True)
class EvaluationSet:
    """N labelled images.

    Attributes:
        name: for titles and file names.
        keys: of the images.
        images: encoded files, read one at a time.
        entities: what each image shows. In a set of captioned images each image is an entity of its own.
        names: preferred name of each entity; the entity itself where it is missing.
        descriptions: one line about an entity; missing where there is none.
        captions: texts that describe an entity, as (text, entity).
        domains: group of each image, where the set has any.
        fit: labelled images to learn from (the index of kNN, the training set of probes); None where the set
            has only one split.
        queries: rows of the images that query the others, which are the index; None: each queries all.
        templates: prompts of this set, with `{}` where the name goes; empty for those of the evaluator.
        hierarchy: entity or category -> the categories it belongs to, such as WordNet's hypernyms.
        seen: entities that count as seen in training; the others are those of zero-shot learning.
        notes: what is odd about the data, a line each: a class without images.

    Raises:
        InputError: no image, a key twice, columns of different length, a caption of no entity, a query that
            is no row, or twice.
    """

    name: str
    keys: Sequence[str]
    images: Sequence[bytes]
    entities: Sequence[str]
    names: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    captions: Sequence[tuple[str, str]] = ()
    domains: Sequence[str] | None = None
    fit: EvaluationSet | None = None
    queries: Sequence[int] | None = None
    templates: Sequence[str] = ()
    hierarchy: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.keys)
        columns = {"images": self.images, "entities": self.entities, "domains": self.domains}
        for title, column in columns.items():
            if column is not None and len(column) != size:
                raise InputError(f"data set {self.name} has {size} keys and {len(column)} {title}")
        if not size:
            raise InputError(f"data set {self.name} has no images")
        if len(set(self.keys)) < size:
            twice = [key for key, count in Counter(self.keys).items() if count > 1]
            raise InputError(
                f"data set {self.name} has keys more than once: {listed(twice)}; make them unique"
            )
        strangers = {entity for _, entity in self.captions} - set(self.classes)
        if strangers:
            raise InputError(
                f"data set {self.name} has captions of what it does not show or name: "
                f"{listed(sorted(strangers))}"
            )
        if self.queries is not None:
            wrong = [row for row, count in Counter(self.queries).items() if count > 1 or not 0 <= row < size]
            if wrong or not len(self.queries):
                raise InputError(
                    f"data set {self.name} has {len(self.queries)} queries of {size} images; these are no "
                    f"rows, or twice there: {listed(wrong)}"
                )

    @cached_property
    def classes(self) -> list[str]:
        """The C entities that occur here, in `fit`, or only by name (candidates without an image), sorted."""
        fit = self.fit.entities if self.fit is not None else ()
        return sorted({*self.entities, *fit, *self.names})

    @property
    def class_names(self) -> list[str]:
        """Names of `classes`."""
        return [self.names.get(entity, entity) for entity in self.classes]

    def labels(self, entities: Sequence[str] | None = None) -> Tensor:
        """Rows of `classes`, int64, of the images or of the given entities (those of `fit`, of captions)."""
        import torch

        number = {entity: i for i, entity in enumerate(self.classes)}
        wanted = self.entities if entities is None else entities
        return torch.tensor([number[entity] for entity in wanted], dtype=torch.long)

    @cached_property
    def digests(self) -> list[bytes]:
        """BLAKE2b of each image's file, 16 bytes; every file is read once for it."""
        return [hashlib.blake2b(image, digest_size=16).digest() for image in self.images]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that a result can depend on: the images' content, what they show, names, captions."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(b"".join(self.digests))
        about = [
            list(self.entities),
            dict(self.names),
            dict(self.descriptions),
            list(self.captions),
            list(self.domains or ()),
            list(self.queries) if self.queries is not None else None,
            list(self.templates),
            {entity: list(above) for entity, above in self.hierarchy.items()},
            sorted(self.seen),
            self.fit.fingerprint if self.fit is not None else None,
        ]
        digest.update(json.dumps(about, sort_keys=True).encode())
        return digest.hexdigest()
