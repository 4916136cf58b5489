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

ROOT = Path(__file__).parent.parent
MEASURES = ("map", "map_with_self", "knn", "zero_shot_top1", "zero_shot_top5", "image_text_r1", "seconds")


def run(folder: Path, pairs: Path, seed: int, steps: int | None) -> list[dict[str, object]]:
    """Run the quickstart with `seed` into `folder` and read its results."""
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
    return json.loads((folder / "results.json").read_text())


def summarise(runs: list[list[dict[str, object]]]) -> dict[str, dict[str, list[float] | None]]:
    """Per model and measure: [mean, sample standard deviation] over the seeds; None without values."""
    table: dict[str, dict[str, list[float] | None]] = {}
    for rows in zip(*runs, strict=True):
        (model,) = {row["model"] for row in rows}
        table[str(model)] = {}
        for measure in MEASURES:
            values = [float(row[measure]) for row in rows if row[measure] is not None]  # type: ignore[arg-type]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            table[str(model)][measure] = [statistics.mean(values), deviation] if values else None
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
    print(f"\n{'model':<18}" + "".join(f"{measure:>20}" for measure in MEASURES))
    for model, row in table.items():
        cells = [f"{v[0]:.3f} +- {v[1]:.3f}" if v else "-" for v in row.values()]
        print(f"{model:<18}" + "".join(f"{cell:>20}" for cell in cells))
    print(json.dumps({"benchmark": "order", "figures": {"seeds": options.seeds, **table}}))


if __name__ == "__main__":
    main()
