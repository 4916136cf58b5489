"""An opened evaluation set: images, what they show, and what is known about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
        name: for titles and file names.
        keys: of the images.
        images: encoded files, read one at a time.
        entities: what each image shows. In a set of captioned images each image is an entity of its own.
        names: preferred name of each entity; the entity itself where it is missing.
        descriptions: one line about an entity; missing where there is none.
        captions: texts that describe an entity, as (text, entity).
        domains: group of each image, where the set has any.
        fit: labelled images to learn from (the index of kNN, the training set of probes); None where the set has
            only one split.
        queries: rows of the images that query the others, which are the index; None: each queries all.
        templates: prompts of this set, with `{}` where the name goes; empty for those of the evaluator.
        hierarchy: entity or category -> the categories it belongs to, such as WordNet's hypernyms.
        seen: entities that count as seen in training; the others are those of zero-shot learning.
        notes: what is odd about the data, a line each: a class without images.
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
    def fingerprint(self) -> str:
        """Hash of all that a result can depend on: the images' content, what they show, names, captions."""
        digest = hashlib.blake2b(digest_size=16)
        for image in self.images:
            digest.update(hashlib.blake2b(image, digest_size=16).digest())
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
