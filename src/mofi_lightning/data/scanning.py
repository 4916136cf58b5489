"""All rows of a data set, read by several processes in blocks of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mofi_lightning.progress import track

if TYPE_CHECKING:
    from mofi_lightning.data.shards import ShardReader

_R = TypeVar("_R")

# Opening the shards takes a few milliseconds, which this many rows share.
_BLOCK_ROWS = 1024
# of remote data sets, fetched while the rows of one are read
_CHUNKS_AHEAD = 2


class Block(NamedTuple):
    """Rows `first`..`stop` of chunk number `chunk`."""

    chunk: int
    first: int
    stop: int


def scan(
    reader: ShardReader,
    function: Callable[[ShardReader, Block], _R],
    skip: Collection[int],
    num_workers: int | None,
    title: str,
) -> Iterator[_R]:
    """Results of `function` for all blocks, in the order of the rows, with a progress bar.

    Args:
        reader: made with `check=False`; handed to the processes.
        function: reads the rows of one block; can be pickled.
        skip: numbers of chunks that are left out.
        num_workers: processes; None is one for each core, 0 works in this one.
        title: of the progress bar.
    """
    from mofi_lightning.data.processes import available_cores, map_processes

    blocks = []
    for chunk, (first, end) in enumerate(zip(reader.first_rows, reader.first_rows[1:], strict=False)):
        if chunk not in skip:
            starts = range(int(first), int(end), _BLOCK_ROWS)
            blocks += [Block(chunk, start, min(start + _BLOCK_ROWS, int(end))) for start in starts]
    workers = min(available_cores() if num_workers is None else num_workers, len(blocks))
    results = map_processes(partial(_run, function, reader), blocks, workers)
    # the processes are forked for the first result: before the bar has a thread and its locks
    started = list(islice(results, 1))
    yield from track(chain(started, results), title, len(blocks))


def _run(function: Callable[[ShardReader, Block], _R], reader: ShardReader, block: Block) -> _R:
    reader.prefetch(range(block.chunk + 1, min(block.chunk + 1 + _CHUNKS_AHEAD, len(reader.chunk_sizes))))
    return function(reader, block)
