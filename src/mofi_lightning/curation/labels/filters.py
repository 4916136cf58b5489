"""Filters: which pairs are no use, whatever entity they name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mofi_lightning.curation.labels.duplicates import MOST_DISTANCE, duplicates
from mofi_lightning.curation.labels.selection import Mask
from mofi_lightning.data.headers import image_size
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class Facts:
    """What is known of n pairs before an image is decoded.

    Attributes:
        width: in pixels, as it is shown, int32 `[n]`; 0 where no header can be read.
        height: as `width`.
        image_bytes: size of the encoded image, int64 `[n]`; 0 where there is none.
        text_length: in characters, int32 `[n]`.
    """

    width: NDArray[np.int32]
    height: NDArray[np.int32]
    image_bytes: NDArray[np.int64]
    text_length: NDArray[np.int32]

    @classmethod
    def of(cls, images: Sequence[bytes | None], texts: Sequence[str | None]) -> Facts:
        """Facts of encoded images and their texts, equally many; None counts as empty."""
        sizes = [image_size(image or b"") or (0, 0) for image in images]
        return cls(
            np.array([width for _, width in sizes], dtype=np.int32),
            np.array([height for height, _ in sizes], dtype=np.int32),
            np.array([len(image or b"") for image in images], dtype=np.int64),
            np.array([len(text or "") for text in texts], dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.width)


class Filter(ABC):
    """Base class of filters, which are frozen dataclasses of their settings.

    A filter derives from `PairFilter` if it judges each pair by itself, from `CorpusFilter` if it compares
    images of the whole corpus.

    Attributes:
        name: what reports call it.
    """

    name: ClassVar[str]


class PairFilter(Filter):
    """A filter that judges each pair by itself, before its image is decoded."""

    @abstractmethod
    def keep(self, facts: Facts) -> Mask:
        """Which of n pairs stay, bool `[n]`."""


class CorpusFilter(Filter):
    """A filter that compares the images of the whole corpus, after all are decoded."""

    @abstractmethod
    def keep(self, hashes: NDArray[np.uint64]) -> Mask:
        """Which of n images stay, bool `[n]`.

        Args:
            hashes: `perceptual_hash` of the images that can be decoded and that no filter has removed, uint64
                `[n]`, in the order of the corpus.
        """


@dataclass(frozen=True)
class ImageSize(PairFilter):
    """Images large enough and of a common shape.

    The defaults are those of DataComp's basic filtering (Gadre et al. 2023, section 3.2): smaller images are
    icons and thumbnails that an encoder for 224 pixels sees blurred; longer ones are banners, rulers and
    strips of which a square crop shows a detail. An image whose header cannot be read stays: decoding it says
    what is wrong.

    Attributes:
        min_side: the least length of the shorter side, in pixels.
        max_aspect: the most times that the longer side is as long as the shorter.

    Raises:
        InputError: a value is out of range.
    """

    name: ClassVar[str] = "image size"
    min_side: int = 200
    max_aspect: float = 3.0

    def __post_init__(self) -> None:
        if self.min_side < 1:
            raise InputError(
                f"min_side {self.min_side} is out of range; an image has at least 1 pixel a side"
            )
        if not self.max_aspect >= 1:
            raise InputError(
                f"max_aspect {self.max_aspect} is out of range; that of a square is 1, the least"
            )

    def keep(self, facts: Facts) -> Mask:
        """See `PairFilter`."""
        short, long = np.minimum(facts.width, facts.height), np.maximum(facts.width, facts.height)
        fits = (short >= self.min_side) & (long <= self.max_aspect * short)
        kept: Mask = fits | (short == 0)
        return kept


@dataclass(frozen=True)
class TextLength(PairFilter):
    """Texts that can name something and are about the image.

    One character names nothing, while two are a name in Chinese ("北京"); texts of more than a thousand
    characters are keywords or whole articles, which name much that the image does not show (COYO-700M drops
    them, too).

    Attributes:
        min_characters: the shortest text.
        max_characters: the longest text.

    Raises:
        InputError: a value is out of range.
    """

    name: ClassVar[str] = "text length"
    min_characters: int = 2
    max_characters: int = 1000

    def __post_init__(self) -> None:
        if self.min_characters < 0:
            raise InputError(f"min_characters {self.min_characters} is out of range; the least is 0")
        if self.max_characters < self.min_characters:
            raise InputError(
                f"max_characters {self.max_characters} is below min_characters {self.min_characters}; "
                "no text would be left"
            )

    def keep(self, facts: Facts) -> Mask:
        """See `PairFilter`."""
        length = facts.text_length
        kept: Mask = (length >= self.min_characters) & (length <= self.max_characters)
        return kept


@dataclass(frozen=True)
class NearDuplicates(CorpusFilter):
    """Images that look like none before them: of those alike, the first in the order of the corpus stays.

    Images count as alike by `perceptual_hash`, which is blind to colour and to small details. It suits
    photographs, not icons: at any distance drawings that differ in colour alone are alike, and so are all
    blank images.

    Attributes:
        distance: the most bits, of 64, in which the hashes of images that are alike differ, 0 to 3.

    Raises:
        InputError: the distance is out of range.
    """

    name: ClassVar[str] = "near-duplicates"
    distance: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MOST_DISTANCE:
            raise InputError(f"distance {self.distance} is out of range; give 0 to {MOST_DISTANCE} bits")

    def keep(self, hashes: NDArray[np.uint64]) -> Mask:
        """See `CorpusFilter`."""
        return ~duplicates(hashes, self.distance)


def apply(filters: Sequence[Filter], facts: Facts) -> list[str | None]:
    """What removes each of n pairs: the name of the first `PairFilter` that does, None for a pair that stays.

    Raises:
        InputError: a filter returns anything but one bool a pair.
    """
    removed: list[str | None] = [None] * len(facts)
    for pair_filter in filters:
        if isinstance(pair_filter, PairFilter):
            kept = _checked(pair_filter, pair_filter.keep(facts), len(facts))
            for row in np.flatnonzero(~kept).tolist():
                removed[row] = removed[row] or pair_filter.name
    return removed


def apply_to_corpus(filters: Sequence[Filter], hashes: NDArray[np.uint64]) -> dict[str, Mask]:
    """What each `CorpusFilter` removes of n images, bool `[n]` by name, in their order.

    A filter sees only what those before it have left, so the masks share no image.

    Raises:
        InputError: a filter returns anything but one bool an image.
    """
    removed: dict[str, Mask] = {}
    left = np.arange(len(hashes))
    for corpus_filter in filters:
        if isinstance(corpus_filter, CorpusFilter):
            kept = _checked(corpus_filter, corpus_filter.keep(hashes[left]), len(left))
            mask = removed.setdefault(corpus_filter.name, np.zeros(len(hashes), dtype=bool))
            mask[left[~kept]] = True
            left = left[kept]
    return removed


def _checked(given: Filter, kept: Mask, count: int) -> Mask:
    kept = np.asarray(kept)
    if kept.dtype != bool or kept.shape != (count,):
        raise InputError(
            f"filter {given.name!r} returned {kept.dtype} {list(kept.shape)} for {count:,} rows; its keep "
            f"must return bool [{count}]"
        )
    return kept
