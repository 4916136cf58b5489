"""Calibration: from the scores of all labels to the threshold that a share or a precision asks for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mofi_lightning.curation.labels.selection import Floats
from mofi_lightning.types import InputError

# of the 32 bits of a score; 15 of its mantissa's 23 are left
_DROPPED_BITS = 8
# what is added to a histogram waits until it is worth a sort
_MOST_WAITING = 64
# wrong labels are counted where decoys are most and correct labels fewest: below this quantile of the decoys
_QUANTILE = 0.25


def ordinals(scores: ArrayLike) -> NDArray[np.uint32]:
    """Integers in the order of the float32 `scores` `[n]`, equal for equal ones (-0.0 and 0.0 are)."""
    bits = (np.asarray(scores, dtype=np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _scores(ordinals: NDArray[np.uint32]) -> Floats:
    """The inverse of `ordinals`."""
    bits = np.where(ordinals >> 31, ordinals & np.uint32((1 << 31) - 1), ~ordinals)
    return bits.astype(np.uint32).view(np.float32)


class ScoreHistogram:
    """How many of any number of scores lie where, to 2^-15 of their value.

    A bin holds the scores that agree in sign, exponent and the first 15 bits of the mantissa. Only bins that
    hold a score are kept: a billion scores between -10 and 10 take some ten megabytes, whatever their order.
    """

    def __init__(self) -> None:
        self._bins = np.zeros(0, dtype=np.uint32)
        self._counts = np.zeros(0, dtype=np.int64)
        self._waiting: list[tuple[NDArray[np.uint32], NDArray[np.int64]]] = []

    def add(self, scores: ArrayLike) -> None:
        """Count `scores` `[n]`.

        Raises:
            InputError: one of them is no finite number.
        """
        scores = np.asarray(scores, dtype=np.float32)
        if not np.isfinite(scores).all():
            (first, *_) = scores[~np.isfinite(scores)].tolist()
            raise InputError(f"a label has score {first}; check the scorer, whose embeddings must be numbers")
        bins, counts = np.unique(ordinals(scores) >> _DROPPED_BITS, return_counts=True)
        self._wait(bins, counts)

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The histogram of the scores of both."""
        total = ScoreHistogram()
        for one in (self, other):
            total._wait(*one._sorted())
        return total

    def __len__(self) -> int:
        """How many scores there are."""
        return int(self._sorted()[1].sum())

    @property
    def edges(self) -> Floats:
        """The lowest score that each bin with a score can hold, float32 `[k]`, ascending."""
        return _scores((self._sorted()[0] << _DROPPED_BITS).astype(np.uint32))

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many scores each bin with a score holds, int64 `[k]`."""
        return self._sorted()[1]

    def count_from(self, threshold: ArrayLike) -> NDArray[np.int64]:
        """How many scores lie in the bin of `threshold` (any shape) or above: exact at the edge of a bin."""
        bins, counts = self._sorted()
        above = np.concatenate((np.cumsum(counts[::-1])[::-1], [0]))
        return np.asarray(above[np.searchsorted(bins, ordinals(threshold) >> _DROPPED_BITS)])

    def threshold_of_share(self, keep: float) -> float:
        """The highest threshold that the share `keep` of the scores, rounded to whole ones, reaches.

        More of them do where scores are equal to 2^-15. It is the edge of a bin, and float32: exactly
        `count_from(it)` scores reach it.

        Raises:
            InputError: there are no scores.
        """
        self._need_scores("keep")
        wanted = max(1, round(keep * len(self)))
        above = np.cumsum(self.counts[::-1])
        return float(self.edges[::-1][np.searchsorted(above, wanted)])

    def bins(self, bins: int | ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Equally wide bins for a picture.

        Args:
            bins: how many, between the lowest and the highest score; or their edges `[m + 1]`, where scores
                beyond the outer two count in the outer bins.

        Returns:
            The edges `[m + 1]` and the number of scores in each bin `[m]`.
        """
        edges, counts = self.edges, self.counts
        if isinstance(bins, int):
            low, high = (float(edges[0]), float(edges[-1])) if len(edges) else (0.0, 1.0)
            bins = np.linspace(low, high if high > low else low + 1, bins + 1)
        wide = np.asarray(bins, dtype=np.float64)
        place = np.clip(np.searchsorted(wide, edges, side="right") - 1, 0, len(wide) - 2)
        return wide, np.bincount(place, counts, len(wide) - 1).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the histogram as npz; it appears whole or not at all."""
        bins, counts = self._sorted()
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            np.savez(file, bins=bins, counts=counts)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> ScoreHistogram:
        """Read what `save` wrote."""
        loaded = cls()
        with np.load(path, allow_pickle=False) as arrays:
            loaded._bins, loaded._counts = arrays["bins"], arrays["counts"]
        return loaded

    def _wait(self, bins: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        self._waiting.append((bins, counts))
        if len(self._waiting) > _MOST_WAITING:
            self._sorted()

    def _sorted(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        if self._waiting:
            bins = np.concatenate([self._bins, *(bins for bins, _ in self._waiting)])
            counts = np.concatenate([self._counts, *(counts for _, counts in self._waiting)])
            self._bins, place = np.unique(bins, return_inverse=True)
            self._counts = np.zeros(len(self._bins), dtype=np.int64)
            np.add.at(self._counts, place, counts)
            self._waiting = []
        return self._bins, self._counts

    def _need_scores(self, criterion: str) -> None:
        if not len(self):
            raise InputError(f"{criterion} needs labels, of which there are none")


def estimated_precision(labels: ScoreHistogram, decoys: ScoreHistogram, threshold: float) -> float:
    """Estimate which share of the labels from `threshold` on is correct, 0 to 1; 0 if there are none.

    Decoys are labels known to be wrong: the candidates of each text, scored against the image of another
    pair and ranked as the labels were. Wrong labels should score as they do, so with N labels and M decoys,
    of which n(t) and m(t) reach the threshold t, the target-decoy estimate (Elias and Gygi 2007) is

        precision(t) = 1 - pi0 ((m(t) + 1) / M) / (n(t) / N)

    The 1 keeps a handful of labels above all decoys from passing for perfect. The share of wrong labels,
    pi0, is Storey's (2002): below the lower quartile q of the decoys there are hardly any correct labels,
    hence `pi0 = min(1, (share of labels below q) / (share of decoys below q))`. Correct labels that do score
    so low make pi0 too high and the estimate too low, never too high.

    Raises:
        InputError: there are no labels or no decoys.
    """
    (estimate,) = _estimates(labels, decoys, np.array([threshold], dtype=np.float32)).tolist()
    return float(estimate)


def threshold_of_precision(labels: ScoreHistogram, decoys: ScoreHistogram, precision: float) -> float:
    """The lowest threshold from which on the estimated precision is at least `precision`.

    The estimate is made monotone as for a q-value (Storey 2002): a threshold counts as at least as precise as
    the thresholds below it, because the few labels at the very top would make it jump. The threshold is the
    edge of a bin, and float32, as that of `ScoreHistogram.threshold_of_share`.

    Raises:
        InputError: there are no labels or no decoys, or no threshold is that precise.
    """
    edges = labels.edges
    estimates = _estimates(labels, decoys, edges)
    enough = np.flatnonzero(estimates >= precision)
    if not len(enough):
        best = int(np.argmax(estimates))
        raise InputError(
            f"precision {precision:g} is out of reach; the best that these scores attain is an estimated "
            f"{estimates[best]:.3f}, from score {edges[best]:g} on: ask for less, or give a better scorer"
        )
    return float(edges[enough[0]])


def _estimates(labels: ScoreHistogram, decoys: ScoreHistogram, thresholds: Floats) -> NDArray[np.float64]:
    """`estimated_precision` at each of the `thresholds` `[k]`."""
    labels._need_scores("precision")
    if not len(decoys):
        raise InputError(
            "precision is estimated by images that fit no text, which only a scorer tells; give one"
        )
    quartile = decoys.threshold_of_share(1 - _QUANTILE)
    below = 1 - labels.count_from(quartile) / len(labels)
    decoys_below = 1 - decoys.count_from(quartile) / len(decoys)
    wrong = min(1.0, float(below / decoys_below)) if decoys_below > 0 else 1.0
    reached = labels.count_from(thresholds) / len(labels)
    false = wrong * (decoys.count_from(thresholds) + 1) / len(decoys)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(1 - false / reached, 0, 1))
