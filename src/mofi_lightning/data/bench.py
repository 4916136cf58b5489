"""The verb `mofi data bench`: how fast a data set can be fed to training on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from mofi_lightning.types import InputError

_BATCH_ROWS = 64
_WORK = ("reading", "decoding", "augmenting")
_MORE_WORKERS = "more workers help as long as cores are idle"
_REMEDIES = (
    "a faster disk or network or smaller image files help",
    f"{_MORE_WORKERS}, and so do images that are not larger than needed",
    _MORE_WORKERS,
)


def bench(path: str, size: int = 224, num_workers: int = 2, seconds: float = 10.0) -> None:
    """Measure how fast a data set can be fed to training: reading, decoding and augmenting its rows.

    Each of three stages does what the one before does, and more. The last one is what training does: batches
    of shuffled rows, decoded, cropped at random, resized. What was read before may come from memory. The rows
    of a remote data set are fetched anew, in the order in which they are stored, into a folder that is
    removed at the end.

    Args:
        path: folder or URI of the data set.
        size: height and width of the images that the model takes, pixels.
        num_workers: processes that load data, as in `data.num_workers`; 0 loads in this one.
        seconds: for which each stage is measured.

    Raises:
        InputError: the data set cannot be read, or a number is out of its range.
    """
    from mofi_lightning.data.feeding import Speed, measure, stages
    from mofi_lightning.data.mixing import Stream
    from mofi_lightning.data.order import FileOrder, PassOrder
    from mofi_lightning.data.processes import available_cores
    from mofi_lightning.data.shards import ShardReader, open_dataset
    from mofi_lightning.data.storage import Cache, is_remote

    if size < 1 or num_workers < 0 or not seconds > 0:
        raise InputError(
            f"bench needs a size of 1 or more, 0 or more workers and more than 0 seconds, not {size}, "
            f"{num_workers} and {seconds:g}"
        )
    remote = is_remote(str(path))
    with ExitStack() as stack:
        cache = Cache()
        if remote:
            cache.root.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(
                dir=cache.root.parent, prefix="bench-", ignore_cleanup_errors=True
            )
            cache = Cache(stack.enter_context(folder))
        info = open_dataset(path, cache)
        reader = ShardReader(info)
        order = FileOrder(reader.chunk_sizes) if remote else PassOrder(reader.chunk_sizes, seed=1)
        stream = Stream("data", reader, order, min(_BATCH_ROWS, len(reader)), seed=1)
        print(f"{path}: {num_workers} worker(s), {available_cores()} core(s), {size} x {size} pixels")
        print(f"{'':<24}{'rows/s':>10}{'MB/s':>10}")
        measured: list[Speed] = []
        for name, builder in stages(size, info.vocabulary).items():
            speed = measure(stream, builder, num_workers, seconds)
            measured.append(speed)
            # a batch of training holds pixels; its files have the size of those that were read
            bytes_a_row = measured[0].bytes / measured[0].rows
            print(f"{name:<24}{speed.rate:>10,.0f}{speed.rate * bytes_a_row / 1e6:>10,.1f}", flush=True)
        if remote:
            reader.prefetch([])
    if measured[0].rows > info.rows:
        print("all rows were read more than once: this is how fast they are read from memory")
    print(limit([speed.rate for speed in measured]))


def limit(rates: Sequence[float]) -> str:
    """How fast training is fed and what takes most of the time; rows a second of the three stages.

    A later stage is faster than an earlier one if it finds in memory what the earlier one had to fetch.
    """
    times = [1 / rate for rate in rates]
    parts = [times[0], max(0.0, times[1] - times[0]), max(0.0, times[2] - times[1])]
    most = parts.index(max(parts))
    return (
        f"training is fed {min(rates):,.0f} rows/s; {_WORK[most]} takes {parts[most] / sum(parts):.0%} of "
        f"the time: {_REMEDIES[most]}"
    )
