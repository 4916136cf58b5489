"""What the rows of an entity table start from: random numbers, or the vectors of the entities' texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.distributed import counted_generator
from mofi_lightning.sources.tables import Kind, check_table
from mofi_lightning.types import InputError

_BLOCK = 65_536
_BATCH_ROWS = 16_384  # of the file: 32 MB at a width of 512
_TITLE = "file of label vectors"
_WAY_OUT = "make one with `mofi vectors`"


def random_rows(seed: int, shape: tuple[int, int, int], own: range) -> Tensor:
    """The rows `own` of a table `[C, S, D]`, about unit norm, the same however the table is split."""
    num_classes, *centers = shape
    table = torch.empty(len(own), *centers)
    for first in range(own.start - own.start % _BLOCK, own.stop, _BLOCK):
        block = range(first, min(first + _BLOCK, num_classes))
        generator = counted_generator(seed, first // _BLOCK)
        values = torch.randn(len(block), *centers, generator=generator, device="cpu", dtype=torch.float32)
        start, stop = max(own.start, block.start), min(own.stop, block.stop)
        table[start - own.start : stop - own.start] = values[start - first : stop - first] / math.sqrt(
            shape[-1]
        )
    return table


def label_rows(path: Path, ids: Sequence[str], own: range, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The unit vectors of the entities `own` of `ids`, from a file of `mofi vectors`, batch by batch.

    All of the file is checked, whatever is `own`: every rank finds the same fault.

    Yields:
        Where in `own` the batch's entities stand, int64 `[R]`, and their vectors, float32 `[R, D]`.

    Raises:
        InputError: the file is missing, is no file of vectors or lacks some of `ids`; its vectors are not of
            `width`, or one is zero or not finite.
    """
    check_table(path, _TITLE, {"id": Kind.KEY, "vector": Kind.VECTOR}, _WAY_OUT)
    try:
        position = _positions(path, ids)
        for first, vectors in _vectors(path, width):
            here = position[first : first + len(vectors)]
            used = here >= 0
            norm = np.linalg.norm(vectors[used], axis=1)
            if not np.isfinite(norm).all() or not norm.all():
                wrong = ids[int(here[used][~np.isfinite(norm) | (norm == 0)][0])]
                raise InputError(
                    f"label vectors {path}: that of entity {wrong!r} is zero or not finite; {_WAY_OUT}"
                )
            held = (here >= own.start) & (here < own.stop)
            unit = F.normalize(torch.from_numpy(vectors[held]), dim=1)
            yield torch.from_numpy(here[held] - own.start), unit
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"label vectors {path} are damaged; {_WAY_OUT}") from error


def _positions(path: Path, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Where each row of the file stands among `ids`, -1 where it does not."""
    named = pq.read_table(path, columns=["id"])["id"].cast(pa.large_string())
    position = pc.index_in(named, value_set=pa.array(list(ids), pa.large_string()))
    found: npt.NDArray[np.int64] = pc.fill_null(position, -1).to_numpy().astype(np.int64)
    present = np.zeros(len(ids), dtype=bool)
    present[found[found >= 0]] = True
    if not present.all():
        raise InputError(
            f"label vectors {path} lack {(~present).sum()} of {len(ids)} entities, the first "
            f"{ids[int(present.argmin())]!r}; make them from the knowledge base of this data set"
        )
    if (found >= 0).sum() > len(ids):
        raise InputError(f"label vectors {path} name an entity twice; {_WAY_OUT}")
    return found


def _vectors(path: Path, width: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Numbers of first rows, and the rows from there on, `[R, width]`."""
    first = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["vector"]):
            vectors = batch.column(0)
            other = [n for n in pc.list_value_length(vectors).unique().to_pylist() if n != width]
            if other:
                raise InputError(
                    f"label vectors {path} are {other[0] or 0} wide, rows of the entity table {width}; "
                    "make them with the text tower of a model of this embed_dim (`mofi vectors --model`)"
                )
            flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
            yield first, flat.reshape(len(vectors), width)
            first += len(vectors)
