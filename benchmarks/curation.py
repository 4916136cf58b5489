"""What curation costs: mention detection against its peers, the pipeline against its bare work.

    python benchmarks/curation.py [--rounds 5]

Ratios of CPU time, medians of interleaved rounds. The pipeline's is that of `mofi curate` from its start to
its end, with all its processes: photographs of 400 x 300 pixels, a small scorer (the larger it is, the less
the rest counts, which costs `pipeline_more_ms_a_row`), 20,000 entities. Bare, the same rows are decoded,
embedded and matched on one thread. Takes some ten minutes, 15 GB of disk and two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from curation_costs.mentions import mention_figures

LIMITS = {
    "mention_over_pyahocorasick": ">= 0.3",
    "mention_process_mb": "<= 100",
    "pipeline_over_bare": "<= 1.3",
    "cost_per_row_200k_over_10k": "flat",
}


def main() -> None:
    """Run everything, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison")
    options = parser.parse_args()
    figures = mention_figures(options.rounds)
    # not at the top: the processes of the contest, whose memory is measured, import this file
    from curation_costs.pipeline import pipeline_figures

    with tempfile.TemporaryDirectory() as folder:
        figures |= pipeline_figures(Path(folder), options.rounds)
    print(f"{'figure':<40}{'value':>12}  wanted")
    for name, value in figures.items():
        print(f"{name:<40}{value:>12,.3f}  {LIMITS.get(name, '')}")
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"benchmark": "curation", "figures": rounded}))


if __name__ == "__main__":
    main()
