"""The order in which a pass over a source visits its rows: a function of (seed, pass), never a state."""

from __future__ import annotations

import numpy as np

# Chunks whose rows are shuffled together: about a gigabyte is open at a time however large the data set is.
CHUNKS_PER_GROUP = 16


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
        self.rows = int(chunk_sizes.sum())
        self._sizes = chunk_sizes
        self._first_rows = np.concatenate([[0], np.cumsum(chunk_sizes)])
        self._seed = seed
        # one pass and one group are remembered: a step reads neighbouring positions
        self._pass = -1
        self._chunks = np.empty(0, dtype=np.int64)
        self._group_ends = np.empty(0, dtype=np.int64)
        self._group = (-1, -1)
        self._group_rows = np.empty(0, dtype=np.int64)

    def at(self, position: int) -> tuple[int, int]:
        """The pass and the row at `position`."""
        pass_number, index = divmod(position, self.rows)
        if pass_number != self._pass:
            self._chunks = np.random.default_rng((self._seed, pass_number)).permutation(len(self._sizes))
            ends = np.cumsum(self._sizes[self._chunks])
            self._group_ends = ends[CHUNKS_PER_GROUP - 1 :: CHUNKS_PER_GROUP]
            self._pass = pass_number
        group = int(np.searchsorted(self._group_ends, index, side="right"))
        if (pass_number, group) != self._group:
            chunks = self._chunks[group * CHUNKS_PER_GROUP : (group + 1) * CHUNKS_PER_GROUP]
            rows = np.concatenate([np.arange(self._first_rows[c], self._first_rows[c + 1]) for c in chunks])
            generator = np.random.default_rng((self._seed, pass_number, group))
            self._group_rows = generator.permutation(rows)
            self._group = (pass_number, group)
        start = int(self._group_ends[group - 1]) if group else 0
        return pass_number, int(self._group_rows[index - start])


class FileOrder:
    """The order in which the rows are stored, over and over.

    Args:
        rows: of the source.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def at(self, position: int) -> tuple[int, int]:
        """The pass, always 0 so that every visit of a row is the same, and the row at `position`."""
        return 0, position % self.rows
