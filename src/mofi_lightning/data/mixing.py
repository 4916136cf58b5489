"""Batches with a fixed number of rows of every source, resumable at any step on any number of ranks.

Step k of a source holds the positions k·rows .. (k+1)·rows of its endless sequence of shuffled passes
(`data.order`), and whatever a row draws is a function of (seed, pass, key). A batch is thus a function of its
step, the state of a loader is one number, and neither the number of workers nor of ranks changes the global
batch. No worker waits or restarts between passes: a loader is one run of `steps` batches.

Within a step the rows stand chunk by chunk, and each rank takes a contiguous share, always of the same part
of the chunks that are open: one of W machines reads about a W-th of the chunks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from mofi_lightning.data.batching import BadRow, BatchBuilder, Example, Stream
from mofi_lightning.data.slots import BatchImages, ImageSlots
from mofi_lightning.types import Batch, InputError

# The share of bad rows is judged as if at least so many had been read: a few early ones say little.
_LEAST_ROWS = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadRowPolicy:
    """What happens to rows that are damaged or whose image cannot be decoded.

    Attributes:
        action: 'skip' puts a later row of the source in their place, counts them by kind and logs the first
            of each kind; 'raise' ends the run at the first one, naming it.
        max_share: the run also ends when more than this share of the rows that a rank has read of a source
            since it started or resumed is bad, 0..1. Fewer than 1,000 rows count as 1,000: with 0.05 it takes
            51 bad rows to end a run, however short it is.
    """

    action: Literal["skip", "raise"] = "skip"
    max_share: float = 0.05

    def __post_init__(self) -> None:
        if self.action not in ("skip", "raise"):
            raise InputError(f"data.bad_row_policy.action must be skip or raise, not {self.action!r}")
        if not 0 <= self.max_share <= 1:
            raise InputError(f"data.bad_row_policy.max_share must be in 0..1, not {self.max_share}")


class Step(NamedTuple):
    """What a worker hands over for one step."""

    batch: Batch
    bad: list[BadRow]
    slot: int | None


class Mixture(Dataset[Step | InputError]):
    """The batches of a run on one rank, by step.

    Args:
        streams: the sources.
        builder: makes the batches.
        steps: number of batches.
        rank: of this process.
        world_size: number of ranks; each takes an equal, contiguous share of every source's rows of a step.

    Attributes:
        streams: the sources.
        world_size: number of ranks.
        slots: memory for the images, shared with the workers.

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
        self.world_size = world_size
        self.slots = ImageSlots(0)
        self._hinted: dict[str, range] = {}  # positions whose chunks this process has asked for, by source

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Step | InputError:
        """Batch number `step`. An InputError is handed over, because torch would wrap it in a traceback."""
        examples: list[Example] = []
        bad: list[BadRow] = []
        images = BatchImages(self.slots, sum(stream.rows for stream in self.streams) // self.world_size)
        try:
            for stream in self.streams:
                self._prefetch(stream, step)
                found, replaced = stream.examples(
                    step, self._rank, self.world_size, self._builder, images, len(examples)
                )
                examples += found
                bad += replaced
        except InputError as error:
            images.drop()
            return error
        return Step(self._builder.batch(examples, images.tensor()), bad, images.slot)

    def _prefetch(self, stream: Stream, step: int) -> None:
        """Ask for the chunks of the step's group and of the next one whenever a step enters a new group."""
        hinted = self._hinted.get(stream.name, range(0))
        if step * stream.rows not in hinted or (step + 1) * stream.rows - 1 not in hinted:
            self._hinted[stream.name], chunks = stream.ahead(step, self._rank, self.world_size)
            stream.reader.prefetch(chunks)


class BatchLoader:
    """Iterates over the batches of a mixture from the first to the last.

    Args:
        mixture: the batches.
        num_workers: processes that make batches ahead of time; 0 makes them when they are asked for.
        bad_row_policy: what happens to rows that cannot be used. Workers replace them and say so; this
            process decides.
    """

    def __init__(self, mixture: Mixture, num_workers: int, bad_row_policy: BadRowPolicy) -> None:
        self.mixture = mixture
        self._num_workers = num_workers
        self._policy = bad_row_policy
        self._bad: dict[str, Counter[str]] = {stream.name: Counter() for stream in mixture.streams}
        self._read: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.mixture)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(0)

    @property
    def bad_rows(self) -> Counter[str]:
        """Number of rows replaced so far on this rank, by "source: kind"."""
        return Counter(
            {f"{source}: {kind}": n for source, kinds in self._bad.items() for kind, n in kinds.items()}
        )

    def _batches(self, first: int) -> Iterator[Batch]:
        slots = self.mixture.slots = ImageSlots(self._num_workers)
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
            self._judge()
            batch = result.batch
            batch["image"] = slots.lend(batch["image"], result.slot)
            yield batch
            del batch, result  # or they keep their memory while the next is waited for

    def _count(self, row: BadRow) -> None:
        if self._policy.action == "raise":
            raise InputError(
                f"source {row.source!r} has a bad row, {row.message}; `mofi data verify` lists all of them, "
                "data.bad_row_policy.action: skip replaces them"
            )
        kinds = self._bad[row.source]
        kinds[row.kind] += 1
        if kinds[row.kind] == 1:
            _log.warning("source %s: %s; more of this kind are counted only", row.source, row.message)

    def _judge(self) -> None:
        """Count a step as read, and end the run if too much of a source is bad."""
        share = self._policy.max_share
        for stream in self.mixture.streams:
            self._read[stream.name] += stream.rows // self.mixture.world_size
            read, kinds = self._read[stream.name], self._bad[stream.name]
            if kinds.total() > share * max(read, _LEAST_ROWS):
                found = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common())
                raise InputError(
                    f"source {stream.name!r} has too many bad rows: {kinds.total():,} of the {read:,} read "
                    f"({found}), a share of {kinds.total() / read:.3g}; `mofi data verify` lists them, "
                    f"data.bad_row_policy.max_share (now {share:g}) allows more"
                )


class MixingLoader(BatchLoader):
    """The training loader: known length, and a state that is exact at every step.

    Iterating goes on at `step`, the number of batches handed out, whatever the workers have made ahead. A
    length is known, so Lightning does not fetch ahead either, and the state it saves after step k is k.
    """

    step = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches(self.step):
            self.step += 1
            yield batch
            del batch  # or it keeps its memory while the next is waited for

    def state_dict(self) -> dict[str, Any]:
        """The step, and what it counts in."""
        return {"step": self.step, "sources": self._sources()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the state's step.

        Raises:
            InputError: the state counts other sources, rows or seeds, so that its step means other rows.
        """
        then, now = state_dict["sources"], self._sources()
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                raise InputError(
                    f"the checkpoint read source {name!r} with {_written(then.get(name))}, this run with "
                    f"{_written(now.get(name))}; use the checkpoint's data set, rows and seed, or start anew"
                )
        self.step = int(state_dict["step"])

    def _sources(self) -> dict[str, dict[str, Any]]:
        return {
            stream.name: {
                "rows": stream.rows,
                "length": len(stream.reader),
                "seed": stream.seed,
                "fingerprint": stream.fingerprint,
            }
            for stream in self.mixture.streams
        }


def _written(source: dict[str, Any] | None) -> str:
    if source is None:
        return "nothing"
    return (
        f"{source['rows']} of {source['length']} rows a batch (seed {source['seed']}, fingerprint of the "
        f"rows {source['fingerprint']})"
    )
