"""Evaluation beside a bare product and torchmetrics: its time, its error, its memory.

    python benchmarks/evaluation.py [--rounds 9]

Times are medians of interleaved rounds and want an idle machine. Memory is the peak of the resident memory of
fresh processes, beyond their embeddings.
"""

from __future__ import annotations

import argparse
import json

from evaluation_costs.average_precision import average_precision_figures
from evaluation_costs.search import search_figures

LIMITS = {
    "map_over_matmul": "<= 2",
    "map_abs_error": "<= 1e-9",
    "map_peak_mb": "<= 400",
    "torchmetrics_over_map": ">= 10",
    "top_k_extra_mb_2000": "<= 400",
    "top_k_extra_mb_200": "<= 400",
    "map_extra_mb_200_of_1m": "<= 400",
}


def main() -> None:
    """Run everything, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison of times")
    options = parser.parse_args()
    figures = {**average_precision_figures(options.rounds), **search_figures()}
    print(f"\n{'figure':<42}{'value':>10}  wanted")
    for name, value in figures.items():
        print(f"{name:<42}{value:>10.4g}  {LIMITS.get(name, '')}")
    rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
    print(json.dumps({"benchmark": "evaluation", "figures": rounded}))


if __name__ == "__main__":
    main()
