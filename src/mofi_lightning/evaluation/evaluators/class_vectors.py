"""The classes of a set as vectors that its images can be compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mofi_lightning.encoders.label_encoders import label_text
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.listing import listed
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.measures.zero_shot import class_weights


class ClassVectors(NamedTuple):
    """Images and classes in one space.

    Attributes:
        images: `[M, V]`.
        classes: `[C, V]`, in the order of the set's `classes`; zeros for a class that cannot be embedded.
        notes: classes without a name, or that cannot be told apart.
    """

    images: Tensor
    classes: Tensor
    notes: tuple[str, ...]


def in_prompts(
    embedder: Embedder, data: EvaluationSet, embeddings: Tensor, templates: Sequence[str]
) -> ClassVectors:
    """Image embeddings `[M, D]` as they are; names by the text tower, in prompts (the set's own, if any)."""
    names = _names(data)
    weights = class_weights(embedder.texts, names, data.templates or templates)
    return ClassVectors(embeddings, weights, _oddities(data, names))


@torch.inference_mode()
def in_label_space(space: LabelSpace, data: EvaluationSet, embeddings: Tensor) -> ClassVectors:
    """Image embeddings `[M, D]` mapped, and names (with descriptions if the label vectors are of both).

    Raises:
        InputError: the text model that made the label vectors is not there.
    """
    described = data.descriptions if space.config.descriptions else {}
    names = zip(data.classes, _names(data), strict=True)
    texts = [label_text(name, described.get(entity)) for entity, name in names]
    classes = space.encode_text(texts)
    images = space.map_image(embeddings.to(classes.device)).cpu()
    classes = classes.cpu()
    notes = _oddities(data, texts)
    unknown = [data.classes[row] for row in unknown_classes(classes).tolist()]
    if unknown:
        theirs = sum(entity in set(unknown) for entity in data.entities)
        notes += (
            f"{_some(unknown, data)} hold no word that the label vectors' model knows; they do not compete, "
            f"and their {theirs} images are wrong: {listed(unknown)}",
        )
    return ClassVectors(images, classes, notes)


def unknown_classes(classes: Tensor) -> Tensor:
    """Rows of `ClassVectors.classes` that could not be embedded."""
    return (~classes.any(dim=1)).nonzero().flatten()


def _names(data: EvaluationSet) -> list[str]:
    return [
        name if name.strip() else entity for entity, name in zip(data.classes, data.class_names, strict=True)
    ]


def _oddities(data: EvaluationSet, texts: Iterable[str]) -> tuple[str, ...]:
    notes = []
    nameless = [entity for entity in data.classes if not data.names.get(entity, "").strip()]
    if nameless:
        notes.append(f"{_some(nameless, data)} have no name and go by their id: {listed(nameless)}")
    by_text = defaultdict(list)
    for entity, text in zip(data.classes, texts, strict=True):
        by_text[text].append(entity)
    alike = {text: entities for text, entities in by_text.items() if len(entities) > 1}
    if alike:
        members = {entity for entities in alike.values() for entity in entities}
        shown = listed(f"{text!r} ({', '.join(entities)})" for text, entities in alike.items())
        images = sum(entity in members for entity in data.entities)
        notes.append(
            f"{_some(members, data)} share a text and cannot be told apart, so that none of their {images} "
            f"images is right at 1: {shown}"
        )
    return tuple(notes)


def _some(classes: Iterable[str], data: EvaluationSet) -> str:
    return f"{len(set(classes))} of {len(data.classes)} classes"


def why_nothing_to_tell(data: EvaluationSet) -> str:
    """Why classes cannot be told apart by their names; empty if they can."""
    if not data.names:
        return "the data has no names"
    return "the data has one class only" if len(data.classes) < 2 else ""
