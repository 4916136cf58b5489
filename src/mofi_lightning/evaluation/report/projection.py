"""Embeddings on a plane by t-SNE (van der Maaten and Hinton, JMLR 2008), the same for any number of cores."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet

FEWEST, _MOST = 10, 1500
_COMPONENTS, _PERPLEXITY, _STEPS = 50, 30.0, 750


@dataclass(frozen=True)
class Projection:
    """Images on a plane.

    Attributes:
        points: row of an image -> x and y, 0..1, distances in both directions to one scale.
        missing: why there are none.
    """

    points: dict[int, tuple[float, float]]
    missing: str = ""


def drawn_rows(data: EvaluationSet, usable: Sequence[int]) -> list[int]:
    """At most 1,500 of the images, ascending, drawn evenly over domains and over the entities within them.

    Which ones depends on the images' keys, not on their order.
    """
    if len(usable) <= _MOST:
        return list(usable)
    turn = {row: hashlib.blake2b(data.keys[row].encode(), digest_size=8).digest() for row in usable}
    of_entity: Counter[tuple[str, str]] = Counter()
    of_domain: Counter[str] = Counter()
    among_entity: dict[int, int] = {}
    order: list[tuple[int, bytes, int]] = []
    for row in sorted(usable, key=lambda row: turn[row]):
        entity = (_domain(data, row), data.entities[row])
        among_entity[row] = of_entity[entity]
        of_entity[entity] += 1
    for row in sorted(usable, key=lambda row: (among_entity[row], turn[row])):
        order.append((of_domain[_domain(data, row)], turn[row], row))
        of_domain[_domain(data, row)] += 1
    return sorted(row for *_, row in sorted(order)[:_MOST])


def project(embeddings: Tensor, rows: Sequence[int]) -> Projection:
    """t-SNE of the given rows of `embeddings` `[N, D]`, L2-normalised.

    Starts from the first two principal components; distances are those within the first 50. One thread, so
    that the result does not depend on the number of cores.
    """
    if len(rows) < FEWEST:
        return Projection({}, f"{len(rows)} images are too few for a map; it needs {FEWEST}")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    vectors = embeddings[list(rows)].double().numpy()
    if float(np.ptp(vectors, axis=0).max()) < 1e-6:
        return Projection({}, "all embeddings are the same")
    with threadpool_limits(1):
        parts = PCA(min(_COMPONENTS, *vectors.shape), svd_solver="full").fit_transform(vectors)
        start = np.zeros((len(rows), 2), np.float32)
        start[:, : parts.shape[1]] = parts[:, :2] / parts[:, 0].std() * 1e-4
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        model = TSNE(init=start, perplexity=perplexity, max_iter=_STEPS, random_state=0)
        plane = model.fit_transform(parts.astype(np.float32))
    low, high = plane.min(axis=0), plane.max(axis=0)
    scaled = (plane - (low + high) / 2) / max(float((high - low).max()), 1e-9) + 0.5
    return Projection({row: (float(x), float(y)) for row, (x, y) in zip(rows, scaled, strict=True)})


def _domain(data: EvaluationSet, row: int) -> str:
    return "" if data.domains is None else data.domains[row]
