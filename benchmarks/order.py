"""Does the order of the paper appear? The quickstart's comparison over several seeds, mean and deviation.

    python benchmarks/order.py [--seeds 3] [--folder runs/order] [--steps N]

Every seed draws its own weights, batches, crops and texts; the pairs (and their noise) are the same. What a
folder already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from mofi_lightning.evaluation.suite.results import read_results

ROOT = Path(__file__).parent.parent
MEASURES = (
    *("map", "map_with_self", "knn_acc1", "acc1", "acc5"),
    *("image_retrieval_recall@1", "text_retrieval_recall@1", "seconds"),
)


def run(folder: Path, pairs: Path, seed: int, steps: int | None) -> dict[str, dict[str, float | None]]:
    """Run the quickstart with `seed` into `folder` and read the measures of each model."""
    command = [
        "make",
        "-f",
        "configs/quickstart/quickstart.mk",
        f"QUICKSTART={folder}",
        f"PAIRS={pairs}",
        f"SEED={seed}",
    ]
    if steps:
        command.append(f"STEPS={steps}")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}, check=True)
    found: dict[str, dict[str, float | None]] = {}
    for result in read_results(folder):
        measures = found.setdefault(result.model, {"seconds": result.training_seconds})
        measures |= {name: result.metrics.get(name) for name in result.measures}
    return found


def summarise(runs: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, list[float] | None]]:
    """Per model and measure: [mean, sample standard deviation] over the seeds; None without values."""
    table: dict[str, dict[str, list[float] | None]] = {}
    for model in runs[0]:
        table[model] = {}
        for measure in MEASURES:
            found = [run[model].get(measure) for run in runs]
            values = [value for value in found if value is not None]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            table[model][measure] = [statistics.mean(values), deviation] if values else None
    return table


def main() -> None:
    """Run all seeds, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/order"))
    parser.add_argument("--pairs", type=Path, help="pairs folder; made by the first seed if left out")
    parser.add_argument("--steps", type=int, help="training steps of each run; the quickstart's if left out")
    options = parser.parse_args()
    folder = options.folder.resolve()
    pairs = (options.pairs or folder / "pairs").resolve()
    runs = [run(folder / f"seed-{seed}", pairs, seed, options.steps) for seed in range(1, options.seeds + 1)]
    table = summarise(runs)
    print(f"\n{'model':<18}" + "".join(f"{measure:>26}" for measure in MEASURES))
    for model, row in table.items():
        cells = [f"{v[0]:.3f} +- {v[1]:.3f}" if v else "-" for v in row.values()]
        print(f"{model:<18}" + "".join(f"{cell:>26}" for cell in cells))
    print(json.dumps({"benchmark": "order", "figures": {"seeds": options.seeds, **table}}))


if __name__ == "__main__":
    main()
