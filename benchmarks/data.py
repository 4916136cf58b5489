"""What the stream of training data costs, and what trimmed texts save: ratios, medians of interleaved rounds.

    python benchmarks/data.py [--rounds 9]

The stream is what training reads: JPEGs of 500 x 375 pixels with captions, from shards, by two processes, in
batches of 256 that nothing but the benchmark takes. Every process has one thread, except in the training
step, which has two. Wants two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from data_costs.container import container_figures
from data_costs.rows import make_rows
from data_costs.streaming import stream_figures
from data_costs.trimming import trimming_figures

LIMITS = {
    "stream_over_bare": ">= 0.9",
    "stream_over_pil": ">= 1.5",
    "trimmed_step_ratio": "<= 0.75",
}


def main() -> None:
    """Run everything, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows()
        figures = stream_figures(rows, Path(folder), options.rounds)
        figures |= container_figures(rows, Path(folder), options.rounds, figures["stream_images_per_s"])
    figures |= trimming_figures(options.rounds)
    print(f"\n{'figure':<34}{'value':>12}  wanted")
    for name, value in figures.items():
        print(f"{name:<34}{value:>12,.3f}  {LIMITS.get(name, '')}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "data", "figures": rounded}))


if __name__ == "__main__":
    main()
