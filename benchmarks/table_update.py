"""Does the entity table lose by sampling, or by row-wise Adagrad? Retrieval mAP over seeds.

    python benchmarks/table_update.py [--seeds 3] [--quickstart runs/quickstart] [--folder runs/table_update]

Three ways to train the quickstart's entity softmax: exact (as its configuration), with a quarter of the
entities sampled in each step, and exact with the table a parameter of the run's AdamW. What `make quickstart`
made is used and otherwise made; runs that are complete are not run again, one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

from torch import nn

from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.evaluation.evaluators import Retrieval
from mofi_lightning.evaluation.suite.results import read_results
from mofi_lightning.functional import margin_statistics
from mofi_lightning.objectives import EntitySoftmax, Objective
from mofi_lightning.types import Batch, Embeddings, ObjectiveOutput, ObjectiveSpec

ROOT = Path(__file__).parent.parent
CONFIGS = "configs/quickstart"
VARIANTS = ("exact", "sampled", "adamw")


class ParameterTable(Objective):
    """`EntitySoftmax`, exact, whose table is a parameter like others. Of one process.

    Args:
        spec: what the objective is built from.
        scale: s, inverse temperature.
        seed: of the table's start.
    """

    requires = frozenset({"entity"})

    def __init__(self, spec: ObjectiveSpec, scale: float = 32.0, seed: int = 1) -> None:
        super().__init__()
        like = EntitySoftmax(spec, scale=scale, seed=seed)
        self.margin, self.scale, self.form = like.margin, like.scale, like.form
        self.table = nn.Parameter(like.table.clone())

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch."""
        labelled = batch["entity"] >= 0
        features, target = embeddings.image[labelled], batch["entity"][labelled]
        found = margin_statistics(features, self.table, target, self.margin, self.scale, self.form)
        losses = found.logsumexp - found.target_logit
        correct = found.target_cosine >= found.largest_cosine
        count = max(len(target), 1)
        return ObjectiveOutput(losses.sum() / count, {"accuracy": correct.sum() / count})


def prepare(quickstart: Path, pairs: Path, steps: int | None) -> None:
    """Make of the quickstart what the runs need: pairs, tokenizer, the curated data set."""
    targets = ("tokenizer.json", "data/validation/dataset.json", "data/i2e/curation.json")
    command = ["make", "-f", f"{CONFIGS}/quickstart.mk", f"QUICKSTART={quickstart}", f"PAIRS={pairs}"]
    command += [f"STEPS={steps}"] if steps else []
    call([*command, *(str(quickstart / target) for target in targets)], quickstart, pairs)


def fit(variant: str, seed: int, folder: Path, quickstart: Path, pairs: Path, steps: int | None) -> None:
    """Train one variant with one seed into `folder`, if that is not done."""
    if (folder / "model" / "config.json").is_file():
        return
    objective = {
        "exact": [],
        "sampled": ["--model.objective.num_sampled", str(_entities(quickstart) // 4)],
        "adamw": ["--model.objective", "benchmarks.table_update.ParameterTable"],
    }
    call(
        [
            *("mofi", "--module", "benchmarks.table_update", "fit", "--ckpt_path", "last"),
            *("--config", f"{CONFIGS}/common.yaml", "--config", f"{CONFIGS}/entity.yaml"),
            *objective[variant],
            *("--model.objective.scale", "16.0", "--model.objective.seed", str(seed)),
            *("--seed_everything", str(seed), "--data.init_args.seed", str(seed)),
            *("--trainer.default_root_dir", str(folder)),
            *(["--trainer.max_steps", str(steps)] if steps else []),
        ],
        quickstart,
        pairs,
    )


def _entities(quickstart: Path) -> int:
    return len(EntityVocabulary.load(quickstart / "data" / "i2e"))


def evaluate(runs: dict[str, Path], output: Path, quickstart: Path, pairs: Path) -> dict[str, float]:
    """Retrieval mAP of each run on the entities that none has seen."""
    models = [f"{name}={folder}" for name, folder in runs.items()]
    command = ["mofi", "evaluate", "--data", str(pairs / "test.parquet"), "--output", str(output)]
    call([*command, "--model", *models], quickstart, pairs)
    results = [result for result in read_results(output) if result.task == Retrieval.task]
    return {r.model: value for r in results if (value := r.metrics["map"]) is not None}


def call(command: list[str], quickstart: Path, pairs: Path) -> None:
    """Run `command` from the root of the repository, with this Python's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "QUICKSTART": str(quickstart), "PAIRS": str(pairs)}
    print("+", *command, flush=True)
    subprocess.run(command, cwd=ROOT, env={**environment, "DO_NOT_TRACK": "1"}, check=True)


def difference(ours: list[float], other: list[float]) -> tuple[float, float | None]:
    """Difference of the means, and the same in standard errors of that difference, if there are several."""
    mean = statistics.mean(ours) - statistics.mean(other)
    error = math.hypot(standard_error(ours), standard_error(other))
    return mean, mean / error if error > 0 else None


def standard_error(values: list[float]) -> float:
    """Standard error of the mean; nan of a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def main() -> None:
    """Run all variants and seeds, print the table and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--pairs", type=Path, help="pairs folder; the quickstart's if left out")
    parser.add_argument("--folder", type=Path, default=Path("runs/table_update"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--steps", type=int, help="training steps of each run; the quickstart's if left out")
    options = parser.parse_args()
    quickstart, folder = options.quickstart.resolve(), options.folder.resolve()
    pairs = (options.pairs or quickstart / "pairs").resolve()
    prepare(quickstart, pairs, options.steps)
    seeds = range(1, options.seeds + 1)
    runs = {f"{v}-{seed}": folder / f"seed-{seed}" / v for seed in seeds for v in options.variants}
    for name, run in runs.items():
        variant, seed = name.split("-")
        fit(variant, int(seed), run, quickstart, pairs, options.steps)
    values = evaluate(runs, folder, quickstart, pairs)
    maps = {v: [values[f"{v}-{seed}"] for seed in seeds] for v in options.variants}
    print(f"\n{'table':<12}{'mAP':>8}{'standard error':>16}   of each seed")
    for variant, found in maps.items():
        each = " ".join(f"{value:.4f}" for value in found)
        print(f"{variant:<12}{statistics.mean(found):>8.4f}{standard_error(found):>16.4f}   {each}")
    figures: dict[str, float | None] = {"seeds": options.seeds}
    comparisons = {"sampled_minus_exact": ("sampled", "exact"), "adagrad_minus_adamw": ("exact", "adamw")}
    for name, (ours, other) in comparisons.items():
        if {ours, other} <= maps.keys():
            figures[f"{name}_map"], figures[f"{name}_in_se"] = difference(maps[ours], maps[other])
    print(json.dumps({"benchmark": "table_update", "figures": figures}))


if __name__ == "__main__":
    main()
