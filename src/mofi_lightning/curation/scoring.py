"""The image check: how well an image shows what its text names, in the eyes of a dual encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.selection import Floats, Ints
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

# candidates scored at a time, so that their embeddings are not all copied at once
_PART = 65_536


def check_templates(templates: Sequence[str]) -> None:
    """Raise InputError if there is no template, or one with another field than name and description."""
    if not templates:
        raise InputError("templates is empty; give at least one, for instance '{name}'")
    for template in templates:
        try:
            template.format(name="", description="")
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"template {template!r} may use {{name}} and {{description}} only") from error


def entity_texts(entity: Entity, templates: Sequence[str]) -> list[str]:
    """`templates` filled with name and description; what an empty one leaves dangling is cut.

    >>> entity_texts(Entity("Q1", "cat"), ["a photo of a {name}", "{name}, {description}"])
    ['a photo of a cat', 'cat']
    """
    return [t.format(name=entity.name, description=entity.description).strip(" ,;:-") for t in templates]


def check_images(
    scorer: Path,
    images: Iterable[bytes],
    candidates: Sequence[Sequence[int]],
    links: Sequence[Sequence[float]],
    entities: Sequence[Entity],
    templates: Sequence[str],
) -> tuple[list[list[float]], dict[int, str]]:
    """Compare every image with its candidate entities: with their texts and with their other images.

    The result is the mean of `standardised_similarity` and `agreement`, or the former alone for an entity
    that no other image may show. Each image and each entity is embedded once, however many candidates there
    are.

    Args:
        scorer: folder or checkpoint of a dual encoder with a text encoder.
        images: encoded files, read once, in order.
        candidates: of each image, rows of `entities`.
        links: P(entity | text) of each candidate.
        entities: the knowledge base.
        templates: texts of an entity; their embeddings are averaged.

    Returns:
        The similarities of each image's candidates, NaN where the image cannot be decoded, and row -> why for
        these.

    Raises:
        InputError: the scorer is no model, has no text encoder, or no image can be decoded.
    """
    import torch

    from mofi_lightning.encoders.dual_encoder import load
    from mofi_lightning.evaluation.embedding import embed_images, embed_texts

    model = load(scorer)
    if model.text is None:
        raise InputError(f"scorer {scorer} has no text encoder; checking images against entities needs one")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [len(found) for found in candidates]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    used, columns = np.unique(
        np.array([e for found in candidates for e in found], dtype=np.int64), return_inverse=True
    )
    texts = [text for row in used for text in entity_texts(entities[row], templates)]
    if not texts:
        raise InputError(
            "no text names an entity of the knowledge base; are pairs and knowledge base of one kind?"
        )
    ensembles = embed_texts(model, texts).numpy().reshape(len(used), len(templates), -1).mean(axis=1)
    embedded = embed_images(model, images)
    vectors = embedded.embeddings.numpy()
    by_text = standardised_similarity(
        vectors, ensembles / np.linalg.norm(ensembles, axis=1, keepdims=True), rows, columns
    )
    weights = np.array([p for found in links for p in found], dtype=np.float32)
    by_images = agreement(vectors, rows, columns, weights)
    similarities = np.where(np.isnan(by_images), by_text, (by_text + by_images) / 2)
    return [part.tolist() for part in np.split(similarities, np.cumsum(sizes)[:-1])], embedded.failed


def undecodable(images: Iterable[bytes]) -> dict[int, str]:
    """The rows of the images that cannot be decoded, and why."""
    from mofi_lightning.encoders.decoding import UndecodableImage, decode

    failed = {}
    for row, image in enumerate(images):
        try:
            decode(image)
        except UndecodableImage as error:
            failed[row] = str(error)
    return failed


def standardised_similarity(images: Floats, texts: Floats, rows: Ints, entities: Ints) -> Floats:
    """How well N candidates fit (image `rows[n]`, entity `entities[n]`).

    The cosine, standardised for each entity text over all images: how many standard deviations the image lies
    above what the text has with images in general. Texts that are close to every image (hubs) so lose their
    advantage, and one threshold suits all entities. With mean m and covariance S of the image embeddings, the
    cosines of text t have mean t·m and variance t·S t, so nothing of size images x entities is computed.

    Args:
        images: image embeddings `[I, D]`; a row of NaN for an image that could not be decoded.
        texts: entity embeddings `[E, D]`.
        rows: `[N]`.
        entities: `[N]`.

    Returns:
        float32 `[N]`, NaN for the candidates of undecodable images.
    """
    background = _Background.of(images)
    similarities = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _PART):
        part = slice(start, start + _PART)
        similarities[part] = background.standardise(images[rows[part]], texts[entities[part]])
    return similarities


def agreement(images: Floats, rows: Ints, entities: Ints, weights: Floats) -> Floats:
    """How well N candidates (image `rows[n]`, entity `entities[n]`) fit the other images of their entity.

    The cosine of the image with the mean of all other images that may show the entity, each weighted by how
    likely its text names it; standardised as in `standardised_similarity`. Wrong labels are scattered over
    the images of many entities and agree with few.

    Args:
        images: image embeddings `[I, D]`; a row of NaN for an image that could not be decoded.
        rows: `[N]`.
        entities: `[N]`, from 0.
        weights: `[N]`, above 0.

    Returns:
        float32 `[N]`, NaN where the entity has no other image, and for undecodable images.
    """
    background = _Background.of(images)
    usable = ~np.isnan(images[rows, 0])
    weights = np.where(usable, weights, 0)
    known = np.nan_to_num(images)
    sums = np.zeros((int(entities.max(initial=-1)) + 1, images.shape[1]))
    mates = np.bincount(entities[usable], minlength=len(sums)) - 1
    for start in range(0, len(rows), _PART):
        part = slice(start, start + _PART)
        np.add.at(sums, entities[part], weights[part, None] * known[rows[part]])
    fits = np.full(len(rows), np.nan, dtype=np.float32)
    found = np.flatnonzero(usable & (mates[entities] > 0))
    for start in range(0, len(found), _PART):
        some = found[start : start + _PART]
        others = sums[entities[some]] - weights[some, None] * known[rows[some]]
        others /= np.linalg.norm(others, axis=1, keepdims=True).clip(min=1e-12)
        fits[some] = background.standardise(known[rows[some]], others)
    return fits


class _Background(NamedTuple):
    """Mean `[D]` and covariance `[D, D]` of the image embeddings: what any vector's cosines with them are."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, images: Floats) -> _Background:
        usable = images[~np.isnan(images).any(axis=1)].astype(np.float64)
        mean = usable.mean(axis=0)
        return cls(mean, (usable - mean).T @ (usable - mean) / len(usable))

    def standardise(self, images: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
        """Cosine of each of n images with its own target, standardised by those of all images."""
        cosine = np.einsum("nd,nd->n", images, targets)
        variance = np.einsum("nd,nd->n", targets @ self.covariance, targets)
        deviation: NDArray[np.float64] = (cosine - targets @ self.mean) / np.sqrt(variance.clip(min=1e-12))
        return deviation
