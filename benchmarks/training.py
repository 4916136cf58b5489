"""What training costs: the Trainer, a CLIP step beside open_clip's, sliced batches, the table on two ranks.

    python benchmarks/training.py [--rounds 5] [--parts trainer clip-step slices table]

Ratios are medians of interleaved rounds. Wants two idle cores; about eight minutes.
"""

from __future__ import annotations

import argparse
import json

from training_costs.clip_step import clip_step_figures
from training_costs.slices import slices_figures
from training_costs.table import table_figures
from training_costs.trainer import trainer_figures

LIMITS = {
    "trainer_overhead_ms": "<= 0.8",
    "clip_step_over_open_clip": "<= 0.75",
    "table_two_ranks_over_one": "<= 1.2",
    "cache_memory_ratio": "<= 0.25",
    "cache_time_ratio": "<= 1.4",
}
PARTS = {
    "trainer": trainer_figures,
    "clip-step": clip_step_figures,
    "slices": slices_figures,
    "table": table_figures,
}


def main() -> None:
    """Run the parts, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for part in options.parts:
        figures |= PARTS[part](options.rounds)
    print(f"\n{'figure':<34}{'value':>12}  wanted")
    for name, value in figures.items():
        print(f"{name:<34}{value:>12,.3f}  {LIMITS.get(name, '')}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "training", "figures": rounded}))


if __name__ == "__main__":
    main()
