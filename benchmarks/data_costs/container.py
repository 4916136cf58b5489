"""Reading alone, nothing decoded: our shards beside WebDataset and beside plain files."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from random import Random

import webdataset

from data_costs.rounds import in_turn
from data_costs.streaming import WORKERS, stream
from mofi_lightning.data.datamodule import I2EDataModule
from mofi_lightning.data.schema import Row
from objective_costs.timing import median_ratio

ROWS_A_TAR = 512
SHUFFLE_BUFFER = 1000
SEED = 1


def container_figures(
    rows: list[Row], folder: Path, rounds: int, stream_images_per_s: float
) -> dict[str, float]:
    """Rows a second of each container over those of our reader, in one process, from the page cache.

    Ours reads in the stream's order and checks every row; WebDataset shuffles as is usual; of plain files
    only the images are read.

    Args:
        rows: of the data set.
        folder: holds the data set `dataset`; receives tars and files.
        rounds: of the comparison.
        stream_images_per_s: of the whole stream with all workers.
    """
    _write_tars(rows, folder / "tars")
    paths = _write_files(rows, folder / "files")
    containers = {
        "shards": lambda: _shards(folder / "dataset"),
        "webdataset": lambda: _webdataset(folder / "tars"),
        "files": lambda: _files(paths),
    }
    expected = {row.key: row.image for row in rows}
    for name, read in containers.items():
        assert dict(islice(read(), len(rows))) == expected, f"{name} does not give the rows"
    rates = in_turn(
        {name: _rate_of(read, len(rows)) for name, read in containers.items()}, rounds, "rows read/s"
    )
    share = stream_images_per_s / WORKERS / statistics.median(rates["shards"])
    return {
        "webdataset_over_stream": median_ratio(rates["webdataset"], rates["shards"]),
        "files_over_stream": median_ratio(rates["files"], rates["shards"]),
        "container_rows_per_s": statistics.median(rates["shards"]),
        "container_share_of_stream": share,
    }


def _rate_of(read: Callable[[], Iterator[tuple[str, bytes]]], rows: int) -> Callable[[], float]:
    """Rows a second of a pass, after what starting takes."""

    def rate() -> float:
        with closing(read()) as reading:  # type: ignore[type-var]
            next(reading)
            start = time.perf_counter()
            for _ in range(rows - 1):
                next(reading)
            return (rows - 1) / (time.perf_counter() - start)

    return rate


def _shards(dataset: Path) -> Iterator[tuple[str, bytes]]:
    (source,) = stream(dataset, I2EDataModule).mixture.streams
    source.reader[0]  # what opens litdata
    for step in range(-(-len(source.reader) // source.rows)):
        for index in sorted(index for _, _, index in source.share(step, 0, 1)):
            row = source.reader[index]
            yield row.key, row.image


def _webdataset(tars: Path) -> Iterator[tuple[str, bytes]]:
    urls = sorted(map(str, tars.glob("*.tar")))
    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=SEED).shuffle(SHUFFLE_BUFFER)
    for key, image, _ in samples.to_tuple("__key__", "jpg", "txt"):
        yield key, image


def _files(paths: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with open(path, "rb") as file:
            yield path.stem, file.read()


def _write_tars(rows: list[Row], folder: Path) -> None:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=ROWS_A_TAR, verbose=0) as writer:
        for row in rows:
            writer.write({"__key__": row.key, "jpg": row.image, "txt": row.text})


def _write_files(rows: list[Row], folder: Path) -> list[Path]:
    """Write the images; their paths come shuffled."""
    folder.mkdir()
    paths = [folder / f"{row.key}.jpg" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        path.write_bytes(row.image)
    Random(SEED).shuffle(paths)
    return paths
