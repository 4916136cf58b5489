"""Top-k search in a large index: its memory, for many and few queries."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from evaluation_costs.fresh import peak_mb
from mofi_lightning.evaluation.measures.neighbours import top_k
from mofi_lightning.evaluation.measures.retrieval import retrieval_average_precision
from objective_costs.live_memory import peak_rss_growth

INDEX, WIDTH = 1_000_000, 512
PER_CLASS = 10
NEIGHBOURS = 20
THREADS = 2


def search_figures() -> dict[str, float]:
    """MB of resident memory beyond the index of a million rows, and the queries."""
    return {
        "top_k_extra_mb_2000": peak_mb("search", "top_k", 2000),
        "top_k_extra_mb_200": peak_mb("search", "top_k", 200),
        "map_extra_mb_200_of_1m": peak_mb("search", "map", 200),
    }


def memory_probe(measure: str, queries: str) -> None:
    """What is measured in a process of its own."""
    torch.set_num_threads(THREADS)
    generator = torch.Generator().manual_seed(0)
    index = torch.empty(INDEX, WIDTH)
    for part in index.split(10_000):
        part.copy_(F.normalize(torch.randn(part.shape, generator=generator), dim=1))
    asked = index[:: INDEX // int(queries)] + 0.02 * torch.randn(int(queries), WIDTH, generator=generator)
    labels = torch.arange(INDEX) // PER_CLASS
    own = labels[:: INDEX // int(queries)]

    def search() -> object:
        if measure == "map":
            return retrieval_average_precision(asked, own, index, labels)
        return top_k(asked, index, NEIGHBOURS)

    top_k(asked[:10], index[:100], NEIGHBOURS)  # libraries load themselves
    print(peak_rss_growth(search))
