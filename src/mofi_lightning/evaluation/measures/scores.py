"""Cosine scores: fast in fp32 where their order is certain, in fp64 where it is not.

fp32 products round differently in blocks of other heights and may at other places of a block, so that copies
of an image need not tie and near-ties fall either way. The measures of this folder therefore compare fp32
scores that are less than `window` apart again in fp64, and call two rows tied if these differ by `TIE` at
most. Their results are those of fp64 scores of the same fp32 unit vectors, for any order of rows and size of
block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mofi_lightning.types import InputError

# elements of one block of scores: 32 MiB in fp32, so that memory does not grow with the number of queries
BLOCK = 2**23

# fp64 scores this close are equal: copies of a row differ by a few 1e-16, other rows by more in all but a
# vanishing share of pairs
TIE = 2e-14

# a norm that fp32 cannot tell from 1, however it was computed
UNIT = 1e-6


def unit(embeddings: Tensor) -> Tensor:
    """`embeddings` `[N, D]` in fp32 with rows of norm 1; a row of zeros stays, it scores 0 with everything.

    Rows that have norm 1 already, up to the rounding of fp32, stay bit for bit, and if all have, nothing is
    copied: an index of millions of rows is used where it lies.

    Raises:
        InputError: a row is not finite: no measure of it would mean anything.
    """
    embeddings = embeddings.detach()
    parts = row_blocks(len(embeddings), embeddings.shape[1])
    norms = [torch.linalg.vector_norm(embeddings[part].double(), dim=1) for part in parts]
    norm = torch.cat(norms) if norms else embeddings.new_empty(0, dtype=torch.float64)
    broken = (~norm.isfinite()).nonzero().flatten().tolist()
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        raise InputError(
            f"{len(broken)} of {len(embeddings)} embeddings are not finite (rows {shown}); "
            "leave these images out or repair the model"
        )
    divisor = norm.where(((norm - 1).abs() > UNIT) & (norm > 0), 1.0)
    if embeddings.dtype == torch.float32 and bool((divisor == 1).all()):
        return embeddings
    result = torch.empty_like(embeddings, dtype=torch.float32)
    for part in parts:
        result[part] = (embeddings[part].double() / divisor[part, None]).float()
    return result


def fp32_scores(queries: Tensor, index: Tensor) -> Tensor:
    """Products `[Q, N]` of unit vectors `[Q, D]` and `[N, D]`, in full fp32 whatever autocast or TF32 say."""
    with _full_precision(queries.device.type):
        return queries @ index.T


def window(width: int) -> float:
    """Scores of vectors of this width in fp32 that differ by more are in their true order.

    Twice sqrt(D) times the unit roundoff, the probabilistic bound of the rounding of an inner product of unit
    vectors (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019); what is seen is a third of it.
    """
    return 2 * math.sqrt(width) * 2**-24


def exact_scores(queries: Tensor, index: Tensor) -> Tensor:
    """The same products in fp64; the index is cast a part at a time."""
    scores = torch.empty(len(queries), len(index), dtype=torch.float64, device=index.device)
    wide = queries.double()
    for part in row_blocks(len(index), index.shape[1]):
        torch.mm(wide, index[part].double().T, out=scores[:, part])
    return scores


def exact_pairs(queries: Tensor, index: Tensor, query: Tensor, row: Tensor) -> Tensor:
    """Products in fp64 of the pairs (`query[i]`, `row[i]`), `[n]`."""
    scores = torch.empty(len(query), dtype=torch.float64, device=index.device)
    # small enough for a cache
    for part in row_blocks(len(query), index.shape[1], 2**18):
        scores[part] = (queries[query[part]].double() * index[row[part]]).sum(dim=1)
    return scores


def row_blocks(rows: int, width: int, elements: int = BLOCK // 4) -> list[slice]:
    """Slices of `rows` rows of `width` numbers, of about `elements` numbers each."""
    size = max(1, elements // max(1, width))
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
