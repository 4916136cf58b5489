"""What the objectives cost beside their peers: ratios of time and memory, medians of interleaved rounds.

    python benchmarks/objectives.py [--rounds 9]

Memory is the peak of the bytes of live tensors, counted alike for both sides; resident memory is printed
beside it. Times want an idle machine.
"""

from __future__ import annotations

import argparse
import json

from objective_costs.contrastive import contrastive_figures
from objective_costs.entity import entity_figures

LIMITS = {
    "clip_time_ratio_4k": "<= 0.65",
    "clip_time_ratio_8k": "<= 0.65",
    "clip_memory_ratio_8k": "<= 0.25",
    "clip_memory_growth_4k_16k": "<= 5",
    "siglip_time_ratio_8k": "<= 0.70",
    "siglip_memory_ratio_8k": "<= 0.20",
    "sampled_2m_over_20k": "<= 1.10",
    "sampled_speedup_over_dense_gradient_2m": ">= 10",
    "exact_1m_time_ratio": "<= 0.5",
    "exact_1m_extra_mb": "<= 200",
}


def main() -> None:
    """Run everything, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each comparison of times")
    options = parser.parse_args()
    figures = {**contrastive_figures(options.rounds), **entity_figures(options.rounds)}
    print(f"\n{'figure':<42}{'value':>10}  wanted")
    for name, value in figures.items():
        print(f"{name:<42}{value:>10.3f}  {LIMITS.get(name, '')}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "objectives", "figures": rounded}))


if __name__ == "__main__":
    main()
