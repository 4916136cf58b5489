"""Similarity in standard deviations: how much better an image fits an entity than images in general do.

The cosines of an entity's vector are standardised over all images. Vectors that are close to every image
(hubs) so lose their advantage, and one threshold suits all entities. With mean m and covariance S of the
images' embeddings, the cosines of a vector t have mean t·m and variance t·S t, so nothing of size images x
entities is computed, and m and S are sums over the parts of a corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.types import InputError

Floats = NDArray[np.float32]
Ints = NDArray[np.integer[Any]]
_Doubles = NDArray[np.float64]

# vectors in fp64 at a time: some 100 MB at D = 1024
_BLOCK = 8_192

# directions in which images vary less than this share of the mean are noise, not to be blown up
_LEAST_VARIANCE = 1e-3

# of unit vectors, less variance than this is rounding: one image, or all the same
_ROUNDING = 1e-12

# score of an image's showing none of its candidates
_NOTHING = 1.0


class Background(NamedTuple):
    """Mean `[D]` and covariance `[D, D]` of the image embeddings: what any vector's cosines with them are."""

    mean: _Doubles
    covariance: _Doubles

    def of(self, vectors: NDArray[Any]) -> tuple[_Doubles, _Doubles]:
        """Mean and standard deviation of the cosines of each of `vectors` `[n, D]` with all images, `[n]`."""
        x = vectors.astype(np.float64)
        variance = np.einsum("nd,nd->n", _product(x, self.covariance), x)
        return np.einsum("nd,d->n", x, self.mean), np.sqrt(variance.clip(min=_ROUNDING))

    def whiten(self, images: NDArray[Any]) -> _Doubles:
        """`images` `[n, D]` less their mean, times S^(-1/2): all directions then vary by 1 (ZCA)."""
        import torch

        with one_thread():
            variances, directions = (x.numpy() for x in torch.linalg.eigh(torch.from_numpy(self.covariance)))
        scales = variances.clip(min=max(_LEAST_VARIANCE * variances.mean(), _ROUNDING)) ** -0.5
        matrix = _product(directions * scales, directions.T)
        return _product(images.astype(np.float64) - self.mean, matrix)


@dataclass(frozen=True)
class Moments:
    """Sums over image embeddings; those of a corpus are the sum of its parts'.

    Attributes:
        count: number of images.
        sum: of the embeddings, float64 `[D]`.
        outer: sum of their outer products, float64 `[D, D]`.
    """

    count: int
    sum: _Doubles
    outer: _Doubles

    @classmethod
    def of(cls, embeddings: NDArray[Any]) -> Moments:
        """The moments of `embeddings` `[n, D]`."""
        x = embeddings.astype(np.float64)
        return cls(len(x), x.sum(axis=0), _product(x.T, x))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    @property
    def background(self) -> Background:
        """Mean and covariance.

        Raises:
            InputError: there is no image.
        """
        if not self.count:
            raise InputError("no image could be embedded, so there is nothing to standardise cosines by")
        mean = self.sum / self.count
        return Background(mean, self.outer / self.count - np.outer(mean, mean))

    def save(self, path: Path) -> None:
        """Write the file `path`, in NumPy's .npz form whatever its name."""
        with path.open("wb") as file:
            np.savez(file, count=self.count, sum=self.sum, outer=self.outer)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(int(stored["count"]), stored["sum"], stored["outer"])


def entity_statistics(background: Background, vectors: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each entity's cosines with all images.

    Args:
        background: of the images.
        vectors: of the entities, `[U, D]`, possibly memory-mapped.

    Returns:
        Two float32 `[U]`.
    """
    mean, deviation = np.empty((2, len(vectors)), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = slice(start, start + _BLOCK)
        mean[block], deviation[block] = background.of(vectors[block])
    return mean, deviation


def standardise(cosines: Floats, mean: Floats, deviation: Floats) -> Floats:
    """`cosines` in standard deviations above the mean, with the statistics of their entities, all `[N]`."""
    standardised: Floats = (cosines - mean) / deviation
    return standardised


class EntitySums:
    """What the images of each entity have in common: weighted sums of their embeddings less the mean of all.

    Parts are accumulated in their order, so that the sums are the same however many workers made the parts.

    Attributes:
        sums: `[U, D]` float32, zeros at first; a memory-mapped file where U is large.
        counts: images of each entity, `[U]`.
    """

    def __init__(self, sums: Floats) -> None:
        self.sums = sums
        self.counts = np.zeros(len(sums), dtype=np.int64)

    def accumulate(
        self, background: Background, embeddings: NDArray[Any], rows: Ints, entities: Ints, weights: Floats
    ) -> None:
        """Add the candidates of a part.

        Args:
            background: of the images of the corpus.
            embeddings: of its images, `[n, D]`; a row of NaN for an image that counts nowhere.
            rows: image of each candidate, `[N]`.
            entities: its entity, `[N]`, below U.
            weights: how likely the image shows the entity, `[N]`, above 0: P(entity | text), or `posterior`.
        """
        usable = np.flatnonzero(~np.isnan(embeddings[rows, 0]))
        order = usable[np.argsort(entities[usable], kind="stable")]
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            found, first, counts = np.unique(entities[block], return_index=True, return_counts=True)
            weighted = weights[block, None] * (embeddings[rows[block]].astype(np.float64) - background.mean)
            self.sums[found] += np.add.reduceat(weighted, first, axis=0).astype(np.float32)
            self.counts[found] += counts


def agreement_of_part(
    total: EntitySums,
    background: Background,
    embeddings: NDArray[Any],
    rows: Ints,
    entities: Ints,
    weights: Floats,
    partners: Ints,
) -> tuple[Floats, Floats]:
    """How well each candidate's image fits the other images that may show the entity.

    With q the sum over the entity's other images in `total`, scaled to length 1, and x the image, the
    agreement is q·S^(-1/2) (x - m): over all images x it has mean 0 and variance 1, as the standardised
    cosine with the entity's text has. Half whitened, what many images share (style, background) counts less
    than in the cosine. Wrong labels are scattered over the images of many entities and agree with few.

    Args:
        total: of the whole corpus, this part among it with the same arguments.
        background: of the images of the corpus.
        embeddings: of the part, as in `EntitySums.accumulate`.
        rows: as there.
        entities: as there.
        weights: as there.
        partners: of each image another one, as `scoring.partners` pairs them, `[n]`; -1 for none.

    Returns:
        Two `[N]`: of the candidate's image, NaN where it is unusable or the entity has no other image; and of
        its partner in its place, which is known to be wrong, NaN where there is no partner either.
    """
    own, decoy = np.full((2, len(rows)), np.nan, dtype=np.float32)
    found = np.flatnonzero(~np.isnan(embeddings[rows, 0]) & (total.counts[entities] > 1))
    white = background.whiten(embeddings)
    for start in range(0, len(found), _BLOCK):
        block = found[start : start + _BLOCK]
        centred = embeddings[rows[block]].astype(np.float64) - background.mean
        others = total.sums[entities[block]] - weights[block, None] * centred
        others /= np.linalg.norm(others, axis=1, keepdims=True).clip(min=1e-12)
        own[block] = np.einsum("nd,nd->n", white[rows[block]], others)
        partner = partners[rows[block]]
        decoy[block] = np.where(partner >= 0, np.einsum("nd,nd->n", white[partner], others), np.nan)
    return own, decoy


def posterior(rows: Ints, links: Floats, similarity: Floats) -> Floats:
    """How likely each candidate is what its image shows, by text and image: weights for `EntitySums`.

    The softmax, over the candidates of an image and that it shows none of them, of log P(entity | text) plus
    similarity; of the latter, 1: an image that fits a certain text by less than one standard deviation is
    likelier to show something else.

    Args:
        rows: image of each candidate, ascending, `[N]`.
        links: P(entity | text), above 0, `[N]`.
        similarity: of image and entity in standard deviations, without NaN, `[N]`.

    Returns:
        `[N]`.
    """
    if not len(rows):
        return np.zeros(0, dtype=np.float32)
    scores = np.log(links.astype(np.float64)) + similarity
    first = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    image = np.cumsum(np.diff(rows, prepend=rows[0]) != 0)
    top = np.maximum(np.maximum.reduceat(scores, first), _NOTHING)
    exponentials = np.exp(scores - top[image])
    total = np.add.reduceat(exponentials, first) + np.exp(_NOTHING - top)
    return np.maximum(exponentials / total[image], 1e-6).astype(np.float32)


def combine(standardised: Floats, agreement: Floats) -> Floats:
    """The similarity of candidates, `[N]`: one part text, three parts agreement; without agreement, the text.

    The shares are those that judged emoji best (three seeds); equal shares and agreement alone came close.
    """
    similarity: Floats = np.where(np.isnan(agreement), standardised, (standardised + 3 * agreement) / 4)
    return similarity


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread of the CPU, so that roundings do not depend on how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _product(a: _Doubles, b: _Doubles) -> _Doubles:
    """`a @ b`, to the same bits with any number of threads, which NumPy does not promise."""
    import torch

    with one_thread():
        product: _Doubles = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product
