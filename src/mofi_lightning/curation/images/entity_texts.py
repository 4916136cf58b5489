"""The texts of an entity for an image-text model, and the vectors that these give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from string import Formatter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.evaluation.embedding.images import EmbeddingModel

# entities whose texts are embedded together: fixed, because padding to the longest text may change roundings
_BLOCK = 1024
_MOST_ALIASES = 32
_FIELDS = {"name", "alias", "description"}
_BRACKETED = re.compile(r"\s*[(\[]\s*\{description\}\s*[)\]]")


def check_templates(templates: Sequence[str]) -> None:
    """Raise InputError if there is no template, or one with more than {name}, {alias}, {description}."""
    if not templates:
        raise InputError("templates is empty; give at least one, for instance '{name}'")
    for template in templates:
        try:
            fields = [rest for _, *rest in Formatter().parse(template) if rest[0] is not None]
        except ValueError:
            fields = [[template]]
        if not all(field in _FIELDS and not any(form) for field, *form in fields):
            raise InputError(
                f"template {template!r} may use {{name}}, {{alias}} and {{description}} only, without format"
            )


def entity_texts(entity: Entity, template: str) -> list[str]:
    """`template` filled with name and description, and with each alias, where it asks for one (at most 32).

    The name stands in where there is no alias; what an empty description leaves dangling is cut, brackets
    around it too.

    >>> entity_texts(Entity("Q1", "cat", ("puss", "kitty")), "{name}, {description}")
    ['cat']
    >>> entity_texts(Entity("Q1", "cat", ("puss", "kitty")), "a photo of a {alias}")
    ['a photo of a puss', 'a photo of a kitty']
    """
    if not entity.description:
        template = _BRACKETED.sub("", template)
    aliases = (entity.aliases or (entity.name,))[:_MOST_ALIASES] if "{alias" in template else ("",)
    return [
        template.format(name=entity.name, description=entity.description, alias=alias).strip(" ,;:-")
        for alias in aliases
    ]


def entity_vectors(
    model: EmbeddingModel, entities: Iterable[Entity], templates: Sequence[str]
) -> NDArray[np.float32]:
    """What the model takes each entity for: the mean of its texts' embeddings, L2-normalised (CLIP, 3.1.4).

    Each template counts once, however many aliases fill it.

    Of 1,024 entities at a time, equal texts are embedded once, however many templates or entities give them.

    Args:
        model: with a text encoder, on whatever device.
        entities: n of them, read once.
        templates: with {name}, {alias} or {description}.

    Returns:
        `[n, D]`.

    Raises:
        InputError: there is no entity, a template is faulty, or the model has no text encoder.
    """
    from mofi_lightning.evaluation.embedding.images import embed_texts

    check_templates(templates)
    vectors = []
    for block in _blocks(entities):
        filled = [entity_texts(entity, template) for entity in block for template in templates]
        texts = [text for found in filled for text in found]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        embeddings = embed_texts(model, list(numbers)).numpy()
        starts = np.cumsum([0, *map(len, filled)])[:-1]
        sums = np.add.reduceat(embeddings[[numbers[text] for text in texts]], starts, axis=0)
        means = sums / np.array([len(found) for found in filled], dtype=np.float32)[:, None]
        mean = means.reshape(len(block), len(templates), -1).mean(axis=1)
        vectors.append(mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(min=1e-12))
    if not vectors:
        raise InputError("no text names an entity; do the pairs and the knowledge base fit each other?")
    return np.concatenate(vectors)


def _blocks(entities: Iterable[Entity]) -> Iterator[list[Entity]]:
    stream = iter(entities)
    while block := list(islice(stream, _BLOCK)):
        yield block
