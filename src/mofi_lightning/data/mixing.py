"""Batches with a fixed number of rows of every source, resumable at any step on any number of ranks.

Step k of a source holds the positions k·rows .. (k+1)·rows of its endless sequence of shuffled passes
(`data.order`), and whatever a row draws is a function of (seed, pass, key). A batch is thus a function of its
step, the state of a loader is one number, and neither the number of workers nor of ranks changes the global
batch. No worker waits or restarts between passes: a loader is one run of `steps` batches.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from mofi_lightning.data.batching import BatchBuilder, Example
from mofi_lightning.data.randomness import row_generator
from mofi_lightning.data.schema import Row
from mofi_lightning.data.shards import CorruptRow
from mofi_lightning.encoders.decoding import UndecodableImage
from mofi_lightning.types import Batch, InputError

_MOST_REPLACEMENTS = 100

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Random access to rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class Order(Protocol):
    """Which row stands at a position of the endless sequence of passes."""

    def at(self, position: int) -> tuple[int, int]:
        """The pass and the row at `position`."""


class BadRow(NamedTuple):
    """A row that was replaced by the next one: its source, what was wrong, and the message."""

    source: str
    kind: str
    message: str


class Step(NamedTuple):
    """What a worker hands over for one step."""

    batch: Batch
    bad: list[BadRow]


@dataclass(frozen=True)
class Stream:
    """One source of a mixture.

    Attributes:
        name: of the source.
        reader: its rows.
        order: of its passes.
        rows: its rows of the *global* batch.
        seed: of its draws.
    """

    name: str
    reader: Reader
    order: Order
    rows: int
    seed: int

    def examples(self, start: int, count: int, builder: BatchBuilder) -> tuple[list[Example], list[BadRow]]:
        """The examples at `count` positions from `start`; a bad row gives its place to the next good one.

        Raises:
            InputError: so many neighbouring rows are bad that the data set must be.
        """
        examples: list[Example] = []
        bad: list[BadRow] = []
        for first in range(start, start + count):
            for position in range(first, first + min(len(self.reader), _MOST_REPLACEMENTS)):
                pass_number, index = self.order.at(position)
                try:
                    row = self.reader[index]
                    examples.append(builder.example(row, row_generator(self.seed, pass_number, row.key)))
                    break
                except CorruptRow as error:
                    bad.append(BadRow(self.name, "damaged row", str(error)))
                except UndecodableImage as error:
                    bad.append(BadRow(self.name, "undecodable image", f"row {index}: {error}"))
            else:
                raise InputError(
                    f"source {self.name!r} has no usable row near its row {index} ({bad[-1].message}); "
                    "`mofi data verify` lists the bad ones"
                )
        return examples, bad


class Mixture(Dataset[Step | InputError]):
    """The batches of a run on one rank, by step.

    Args:
        streams: the sources.
        builder: makes the batches.
        steps: number of batches.
        rank: of this process.
        world_size: number of ranks; each takes an equal, contiguous share of every source's rows of a step.

    Raises:
        InputError: a source's rows cannot be shared out equally.
    """

    def __init__(
        self, streams: Sequence[Stream], builder: BatchBuilder, steps: int, rank: int, world_size: int
    ) -> None:
        for stream in streams:
            if stream.rows < 1 or stream.rows % world_size:
                raise InputError(
                    f"source {stream.name!r} gives {stream.rows} rows to each batch, which {world_size} "
                    "rank(s) cannot share equally; choose a positive multiple of the number of ranks"
                )
        self.streams = streams
        self._builder = builder
        self._steps = steps
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Step | InputError:
        """Batch number `step`. An InputError is handed over, because torch would wrap it in a traceback."""
        examples: list[Example] = []
        bad: list[BadRow] = []
        try:
            for stream in self.streams:
                share = stream.rows // self._world_size
                start = step * stream.rows + self._rank * share
                found, replaced = stream.examples(start, share, self._builder)
                examples += found
                bad += replaced
        except InputError as error:
            return error
        return Step(self._builder.batch(examples), bad)


class BatchLoader:
    """Iterates over the batches of a mixture from the first to the last.

    Args:
        mixture: the batches.
        num_workers: processes that make batches ahead of time; 0 makes them when they are asked for.

    Attributes:
        bad_rows: number of rows replaced so far on this rank, by "source: kind".
    """

    def __init__(self, mixture: Mixture, num_workers: int) -> None:
        self.mixture = mixture
        self.bad_rows: Counter[str] = Counter()
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self.mixture)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(0)

    def _batches(self, first: int) -> Iterator[Batch]:
        results = DataLoader(
            self.mixture,
            batch_size=None,
            sampler=range(first, len(self)),
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or torch draws the workers' seed from the global generator
        )
        for result in results:
            if isinstance(result, InputError):
                raise result
            for row in result.bad:
                self._count(row)
            yield result.batch

    def _count(self, row: BadRow) -> None:
        kind = f"{row.source}: {row.kind}"
        self.bad_rows[kind] += 1
        if self.bad_rows[kind] == 1:
            _log.warning("source %s, %s; further ones are counted only", kind, row.message)


class MixingLoader(BatchLoader):
    """The training loader: known length, and a state that is exact at every step.

    Iterating goes on at `step`, the number of batches handed out, whatever the workers have made ahead. A
    length is known, so Lightning does not fetch ahead either, and the state it saves after step k is k.
    """

    def __init__(self, mixture: Mixture, num_workers: int) -> None:
        super().__init__(mixture, num_workers)
        self.step = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches(self.step):
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The step, and what it counts in."""
        return {"step": self.step, "sources": self._sources()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the state's step.

        Raises:
            InputError: the state counts other sources, sizes or seeds, so that its step means other rows.
        """
        then, now = state_dict["sources"], self._sources()
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                raise InputError(
                    f"the checkpoint read source {name!r} with {_written(then.get(name))}, this run with "
                    f"{_written(now.get(name))}; use the checkpoint's data, rows and seed, or start anew"
                )
        self.step = int(state_dict["step"])

    def _sources(self) -> dict[str, dict[str, int]]:
        return {
            stream.name: {"rows": stream.rows, "length": len(stream.reader), "seed": stream.seed}
            for stream in self.mixture.streams
        }


def _written(source: dict[str, int] | None) -> str:
    if source is None:
        return "nothing"
    return f"{source['rows']} of {source['length']} rows a batch (seed {source['seed']})"
