"""Mean average precision: against the definition in fp64, a bare product, torchmetrics; and its memory."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalMAP

from evaluation_costs.fresh import peak_mb
from mofi_lightning.evaluation.measures.retrieval import retrieval_average_precision
from objective_costs.timing import interleaved, median_ratio

ROWS, WIDTH, CLASSES = 12_000, 512, 1_200
PEER_ROWS = (
    4_000  # of which torchmetrics keeps 16 million scores, targets and query numbers; it needs its sort
)
BLOCK = 500
THREADS = 2


def average_precision_figures(rounds: int) -> dict[str, float]:
    """Ratios of time (medians of interleaved rounds), the largest error, and MB of resident memory.

    Copies of rows and rows that differ in their last bits are among the data: fp32 scores alone would err.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        vectors, labels = embeddings(ROWS, CLASSES)
        got, want = (average(vectors, labels).nanmean() for average in (_ours, _by_definition))
        sides = {"ours": lambda: _ours(vectors, labels), "product": lambda: _product(vectors)}
        seconds = interleaved(sides, rounds)
        product = median_ratio(seconds["ours"], seconds["product"])
        _report(f"mAP of {ROWS} x {WIDTH}", seconds, product)
        fewer, theirs = vectors[:PEER_ROWS], labels[:PEER_ROWS]
        sides = {"ours": lambda: _ours(fewer, theirs), "torchmetrics": lambda: _torchmetrics(fewer, theirs)}
        seconds = interleaved(sides, min(rounds, 3))
        peer = median_ratio(seconds["torchmetrics"], seconds["ours"])
        _report(f"mAP of {PEER_ROWS} x {WIDTH}", seconds, peer)
    finally:
        torch.set_num_threads(threads)
    return {
        "map_over_matmul": product,
        "map_abs_error": float((got - want).abs()),
        "map_peak_mb": peak_mb("average_precision"),
        "torchmetrics_over_map": peer,
    }


def embeddings(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Unit vectors `[rows, WIDTH]` about the centres of classes ; one in ten is a copy or nearly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) * classes // rows
    vectors = torch.randn(classes, WIDTH, generator=generator)[labels] * 0.4
    vectors += torch.randn(rows, WIDTH, generator=generator)
    copied, onto = torch.randperm(rows, generator=generator)[: rows // 5].chunk(2)
    vectors[onto] = vectors[copied]
    vectors[onto[::2]] += 1e-7 * torch.randn(len(onto[::2]), WIDTH, generator=generator)
    return F.normalize(vectors, dim=1), labels


def memory_probe() -> None:
    """What is measured in a process of its own."""
    torch.set_num_threads(THREADS)
    vectors, labels = embeddings(ROWS, CLASSES)
    from objective_costs.live_memory import peak_rss_growth

    _ours(vectors[:100], labels[:100])  # libraries load themselves
    print(peak_rss_growth(lambda: _ours(vectors, labels)))


def _ours(vectors: Tensor, labels: Tensor) -> Tensor:
    return retrieval_average_precision(vectors, labels, exclude_self=True)


def _product(vectors: Tensor) -> None:
    for block in vectors.split(BLOCK):
        block @ vectors.T


def _by_definition(vectors: Tensor, labels: Tensor) -> Tensor:
    """The definition on fp64 scores; those that differ by fp64's rounding tie and share the last rank."""
    wide = vectors.double()
    values = torch.full((len(labels),), torch.nan, dtype=torch.float64)
    for rows in torch.arange(len(labels)).split(BLOCK):
        for query, scores in zip(rows, wide[rows] @ wide.T, strict=True):
            positive = labels == labels[query]
            positive[query], scores[query] = False, -torch.inf
            score = scores[positive, None] - 2e-14
            rank = (scores >= score).sum(dim=1)
            values[query] = ((scores[positive] >= score).sum(dim=1).double() / rank).mean()
    return values


def _torchmetrics(vectors: Tensor, labels: Tensor) -> Tensor:
    """Each query and its rows as torchmetrics wants them; it is right where all scores are above 0."""
    metric = RetrievalMAP()
    column = torch.arange(len(labels))
    for rows in column.split(BLOCK):
        scores = (vectors[rows] @ vectors.T + 1) / 2
        others = rows[:, None] != column
        target = labels[rows, None] == labels
        indexes = rows[:, None].expand_as(target)
        metric.update(scores[others], target[others], indexes=indexes[others])
    return metric.compute()


def _report(what: str, seconds: dict[str, list[float]], ratio: float) -> None:
    medians = ", ".join(f"{name} {statistics.median(values):.3f} s" for name, values in seconds.items())
    print(f"{what}: {medians}, median of ratios {ratio:.3f}", flush=True)
