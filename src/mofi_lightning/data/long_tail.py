"""How images spread over entities: few entities have very many, very many have few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mofi_lightning.pages import exposed

_BAR = 40
_POINTS = 200
_EIGHTHS = " ▏▎▍▌▋▊▉"
_NAME = 40


class Named(NamedTuple):
    """An entity with its number of images."""

    entity: int
    images: int


class LongTail:
    """The number of images of every entity.

    Args:
        images: of each class id, int64 `[C]`.
    """

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    @cached_property
    def _order(self) -> np.ndarray:
        """The class ids, most images first."""
        return np.argsort(-self._images, kind="stable")

    @property
    def without_images(self) -> int:
        """Number of entities that no row names."""
        return int((self._images == 0).sum())

    def most(self, number: int) -> list[Named]:
        """The entities with the most images."""
        shown = self._order[: min(number, self._shown)]
        return [Named(int(entity), int(self._images[entity])) for entity in shown]

    def least(self, number: int) -> list[Named]:
        """The entities with the fewest images but one or more, fewest first."""
        shown = self._order[: self._shown][::-1][:number]
        return [Named(int(entity), int(self._images[entity])) for entity in shown]

    def head_share(self, share: float) -> float:
        """Share of all labels that fall to the most frequent `share` of the entities with images, 0..1."""
        sizes = self._images[self._order]
        return float(sizes[: max(1, round(share * self._shown))].sum() / max(1, sizes.sum()))

    def curve(self) -> list[tuple[float, float]]:
        """Rank, from 1, and number of images of at most 200 entities whose ranks have equal ratios."""
        ranks = np.unique(np.geomspace(1, max(1, self._shown), _POINTS).round().astype(np.int64))
        sizes = self._images[self._order[ranks - 1]]
        return [(float(rank), float(size)) for rank, size in zip(ranks, sizes, strict=True) if size]

    def bars(self) -> list[str]:
        """A table with bars: entities with 1, 2-3, 4-7, 8-15, ... images, and their share of all labels."""
        lines = [f"{'images':>17}  {'entities':>11}  {'of all labels':>13}"]
        if self.without_images:
            lines.append(f"{'none':>17}  {self.without_images:>11,}  {0:>13.1%}")
        limits = [2**power for power in range(int(self._images.max(initial=0)).bit_length() + 1)]
        groups = [(self._images >= low) & (self._images < end) for low, end in pairwise(limits)]
        tallest = max((int(members.sum()) for members in groups), default=1)
        for (low, end), members in zip(pairwise(limits), groups, strict=True):
            label = f"{low:,}" if low + 1 == end else f"{low:,}-{end - 1:,}"
            entities, share = int(members.sum()), self._images[members].sum() / self._images.sum()
            lines.append(f"{label:>17}  {entities:>11,}  {share:>13.1%}  {_bar(entities / tallest)}".rstrip())
        return lines

    @property
    def _shown(self) -> int:
        return len(self._images) - self.without_images


def described(entities: Sequence[Named], names: Sequence[str]) -> str:
    """The entities as one line of plain text."""
    return ", ".join(f"{exposed(names[entity], _NAME)} ({images:,})" for entity, images in entities)


def _bar(share: float) -> str:
    eighths = max(1, round(share * _BAR * 8)) if share else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
