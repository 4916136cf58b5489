"""Distances between labels in a hierarchy, such as WordNet's of hypernyms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mofi_lightning.types import InputError


class Nearest(NamedTuple):
    """Labels by their distance from one label.

    Attributes:
        labels: rows of the labels, nearest first; the label itself is the first.
        hops: the distance of each.
    """

    labels: list[int]
    hops: list[int]


class LabelHierarchy:
    """A hierarchy of categories with C labels among its nodes; a distance is the least number of hops.

    A hop leads from a node to a category that it belongs to, or back. A node may belong to several, and
    cycles do no harm.

    Args:
        parents: node -> the categories it belongs to.
        labels: the nodes that are labels, each once.

    Raises:
        InputError: a label twice, or one that is not in the hierarchy.
    """

    def __init__(self, parents: Mapping[str, Sequence[str]], labels: Sequence[str]) -> None:
        self.labels = list(labels)
        number = {label: row for row, label in enumerate(self.labels)}
        if len(number) < len(self.labels):
            twice = next(label for row, label in enumerate(self.labels) if number[label] != row)
            raise InputError(f"label {twice!r} stands twice among the labels of a hierarchy")
        self._row = dict(number)
        neighbours: list[set[int]] = [set() for _ in number]

        def node(name: str) -> int:
            if name not in number:
                number[name] = len(neighbours)
                neighbours.append(set())
            return number[name]

        for child, categories in parents.items():
            for category in categories:
                if category != child:
                    below, above = node(child), node(category)
                    neighbours[below].add(above)
                    neighbours[above].add(below)
        outside = [label for label in self.labels if not neighbours[number[label]] and label not in parents]
        if outside:
            raise InputError(
                f"{len(outside)} of {len(self.labels)} classes are not in the hierarchy, the first "
                f"{outside[0]!r}; is it the hierarchy of these classes, and of the same version?"
            )
        _prune(neighbours, len(self.labels))
        self._neighbours = tuple(tuple(sorted(near)) for near in neighbours)
        self._known: dict[int, tuple[int, Nearest]] = {}

    @property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """The nodes one hop from each, where paths between labels lead; nodes 0..C-1 are the labels."""
        return self._neighbours

    def nearest(self, row: int, k: int) -> Nearest:
        """The nearest labels of the label in `row`: whole rings of equal distance until they are at least k.

        They are fewer where the hierarchy connects it to fewer.
        """
        known = self._known.get(row)
        if known is None or known[0] < k:
            known = self._known[row] = (k, self._grow(row, k))
        return known[1]

    def correct_rows(self, row: int, k: int) -> list[int]:
        """Rows of the labels in the correct set of k of the label in `row` (see `correct_set`)."""
        found = self.nearest(row, k)
        if len(found.labels) <= k:
            return found.labels
        return [label for label, hops in zip(*found, strict=True) if hops <= found.hops[k - 1]]

    def correct_set(self, label: str, k: int) -> frozenset[str]:
        """What counts as correct for hierarchical precision@k of an image of `label`.

        The label itself, then the labels one hop away, two, ..., a whole ring at a time, until there are at
        least k (Frome et al., NIPS 2013, appendix). Fewer than k where no more labels are connected to it.

        >>> kinds = {"cat": ["pet"], "dog": ["pet"], "wolf": ["wild"], "pet": ["animal"], "wild": ["animal"]}
        >>> sorted(LabelHierarchy(kinds, ["cat", "dog", "wolf"]).correct_set("cat", 2))
        ['cat', 'dog']
        """
        return frozenset(self.labels[row] for row in self.correct_rows(self._row[label], k))

    def _grow(self, start: int, k: int) -> Nearest:
        ring, seen = [start], {start}
        found = Nearest([], [])
        hops = 0
        while ring and len(found.labels) < k:
            labels = sorted(node for node in ring if node < len(self.labels))
            found.labels.extend(labels)
            found.hops.extend([hops] * len(labels))
            following: list[int] = []
            for node in ring:
                for near in self._neighbours[node]:
                    if near not in seen:
                        seen.add(near)
                        following.append(near)
            ring, hops = following, hops + 1
        return found


def _prune(neighbours: list[set[int]], labels: int) -> None:
    """Cut off dead ends without labels: no shortest path between labels passes through them."""
    ends = [node for node in range(labels, len(neighbours)) if len(neighbours[node]) == 1]
    while ends:
        end = ends.pop()
        for near in neighbours[end]:
            neighbours[near].discard(end)
            if near >= labels and len(neighbours[near]) == 1:
                ends.append(near)
        neighbours[end] = set()
