"""The order in which a pass over a source visits its rows: a function of (seed, pass), never a state."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

# Chunks whose rows are shuffled together: about a gigabyte is open at a time however large the data set is.
CHUNKS_PER_GROUP = 16


class Visits(NamedTuple):
    """What stands at neighbouring positions of the endless sequence of passes.

    Attributes:
        passes: the pass of each visit, int64 `[visits]`.
        rows: the row, int64 `[visits]`.
        places: where in the chunks that are open together the row is stored, 0..1, float64 `[visits]`. Visits
            of neighbouring places read the same chunks.
    """

    passes: np.ndarray
    rows: np.ndarray
    places: np.ndarray


class Ahead(NamedTuple):
    """What will be read soon.

    Attributes:
        chunks: needed now or next, most urgent first.
        until: the position at which it is time to ask again.
    """

    chunks: list[int]
    until: int


class Order(Protocol):
    """Which row stands at a position of the endless sequence of passes over a source."""

    def visits(self, start: int, count: int) -> Visits:
        """The visits at `count` positions from `start`."""

    def ahead(self, start: int, stop: int, low: float, high: float) -> Ahead:
        """The chunks that positions from `start` on read, if only places `low`..`high` are read."""


class PassOrder:
    """Chunk-aware shuffle with random access.

    Every pass draws an order of the chunks, puts `CHUNKS_PER_GROUP` of them at a time into a group, and
    shuffles the rows within the group. Positions count over passes: position p is row `p % rows` of the order
    of pass `p // rows`, so every row comes exactly once a pass, and a reader can start anywhere.

    Args:
        chunk_sizes: rows of each chunk, int64 `[chunks]`.
        seed: of the order.
    """

    def __init__(self, chunk_sizes: np.ndarray, seed: int) -> None:
        self._rows = int(chunk_sizes.sum())
        self._sizes = chunk_sizes
        self._first_rows = np.concatenate([[0], np.cumsum(chunk_sizes)])
        self._seed = seed
        # one pass and one group are remembered: a step reads neighbouring positions
        self._pass = -1
        self._chunks = np.empty(0, dtype=np.int64)
        self._bounds = np.empty(0, dtype=np.int64)
        self._shuffled = (-1, -1)
        self._group_places = np.empty(0, dtype=np.int64)
        self._group_rows = np.empty(0, dtype=np.int64)

    def visits(self, start: int, count: int) -> Visits:
        """The visits at `count` positions from `start`; places are those within each visit's own group."""
        parts = []
        position = start
        while position < start + count:
            pass_number, group, begin, end = self._group(position)
            self._shuffle(pass_number, group)
            found = slice(position - begin, min(end, start + count) - begin)
            rows, places = self._group_rows[found], self._group_places[found]
            parts.append((np.full(len(rows), pass_number), rows, (places + 0.5) / (end - begin)))
            position = end
        return Visits(*map(np.concatenate, zip(*parts, strict=True)))

    def ahead(self, start: int, stop: int, low: float, high: float) -> Ahead:
        """The chunks of the groups of positions `start`..`stop` and of the group after these.

        Only those that hold rows of places `low`..`high` are named: what one of several ranks reads.
        """
        chunks: list[int] = []
        until = start
        while True:
            _, group, _, end = self._group(until)
            members = self._members(group)
            ends = np.cumsum(self._sizes[members])
            wanted = (ends > low * ends[-1]) & (ends - self._sizes[members] < high * ends[-1])
            chunks += members[wanted].tolist()
            if until >= stop:
                return Ahead(chunks, until)
            until = end

    def _group(self, position: int) -> tuple[int, int, int, int]:
        """Pass and number of the group at `position`, and the positions at which it begins and ends."""
        pass_number, index = divmod(position, self._rows)
        if pass_number != self._pass:
            self._chunks = np.random.default_rng((self._seed, pass_number)).permutation(len(self._sizes))
            ends = np.cumsum(self._sizes[self._chunks])
            self._bounds = np.concatenate(
                [[0], ends[CHUNKS_PER_GROUP - 1 : -1 : CHUNKS_PER_GROUP], ends[-1:]]
            )
            self._pass = pass_number
        group = int(np.searchsorted(self._bounds, index, side="right")) - 1
        begin, end = (pass_number * self._rows + int(bound) for bound in self._bounds[group : group + 2])
        return pass_number, group, begin, end

    def _members(self, group: int) -> np.ndarray:
        """The chunks of a group of the pass last asked for."""
        return self._chunks[group * CHUNKS_PER_GROUP : (group + 1) * CHUNKS_PER_GROUP]

    def _shuffle(self, pass_number: int, group: int) -> None:
        if (pass_number, group) != self._shuffled:
            chunks = self._members(group)
            rows = np.concatenate([np.arange(self._first_rows[c], self._first_rows[c + 1]) for c in chunks])
            generator = np.random.default_rng((self._seed, pass_number, group))
            self._group_places = generator.permutation(len(rows))
            self._group_rows = rows[self._group_places]
            self._shuffled = (pass_number, group)


class FileOrder:
    """The order in which the rows are stored, over and over.

    Args:
        chunk_sizes: rows of each chunk, int64 `[chunks]`.
    """

    def __init__(self, chunk_sizes: np.ndarray) -> None:
        self._ends = np.cumsum(chunk_sizes)

    def visits(self, start: int, count: int) -> Visits:
        """The visits at `count` positions from `start`; of pass 0 always, so that each visit is the same."""
        positions = np.arange(start, start + count)
        return Visits(np.zeros_like(positions), positions % self._ends[-1], np.linspace(0, 1, count))

    def ahead(self, start: int, stop: int, low: float, high: float) -> Ahead:
        """The chunk at `start` and those after it; the places do not matter, ranks share each chunk."""
        first = int(np.searchsorted(self._ends, start % self._ends[-1], side="right"))
        chunks = list(range(first, min(first + CHUNKS_PER_GROUP, len(self._ends))))
        return Ahead(chunks, start - start % int(self._ends[-1]) + int(self._ends[first]))
