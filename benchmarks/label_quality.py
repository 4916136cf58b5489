"""How good are the labels of curation? Precision, recall and coverage after each step, by the truth.

    python benchmarks/label_quality.py [--seeds 3] [--folder runs/label_quality] [--sources emoji flags]

The alt-texts are made with known noise: 30 % name another entity, 10 % none (`plugins/emoji`). The scorer is
a CLIP trained on these noisy pairs alone; that of the second round is a CLIP trained on the first round's
labels. Each is used without and with the agreement of an entity's images. Reported are the tables of
`mofi curate`, and the precision of the best labels at recall 0.8 in three readings:

- `over_named`: recall over all pairs whose text names what the image shows;
- `over_correct`: over the labels that are correct before any is dropped, so that linking is left aside;
- `of_one_name`: the same for texts that name one entity only, which leaves nothing but the image check.

What was made is used again; a seed takes some six minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.stages.base import Stage, flat
from mofi_lightning.curation.truth import Truth

ROOT = Path(__file__).parent.parent
RECALL = 0.8
# passes over the pairs: fewer than the quickstart's for flags, of which there are fewer
STEPS = {"emoji": None, "flags": 200}
# name -> (trained on which labels, agreement)
CHECKS = {
    "text alone": (None, False),
    "image check": ("clip-pairs", False),
    "with agreement": ("clip-pairs", True),
    "second round": ("clip-i2e", False),
    "second round, with agreement": ("clip-i2e", True),
}


def call(*words: object, folder: Path) -> None:
    """Run a command from the root of the repository, with this Python's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "DO_NOT_TRACK": "1"}
    command = list(map(str, words))
    print("+", *command, flush=True)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def make(target: str, source: str, seed: int, folder: Path) -> None:
    """A target of the quickstart, of the pairs in `folder`."""
    steps = STEPS[source]
    words = [f"QUICKSTART={folder}", f"PAIRS={folder / 'pairs'}", f"SEED={seed}"]
    words += [f"STEPS={steps}"] if steps else []
    call("make", "-f", "configs/quickstart/quickstart.mk", *words, folder / target, folder=folder)


def write_pairs(source: str, seed: int, folder: Path) -> None:
    """The pairs of a source; one without validation gets its training pairs for that."""
    pairs = folder / "pairs"
    if (pairs / "validation.parquet").exists():
        return
    call("mofi", "pairs", source, "--output", pairs, "--seed", seed, folder=folder)
    if not (pairs / "validation.parquet").exists():
        truth = pq.read_table(pairs / "truth.parquet").to_pylist()
        both = [{**row, "split": split} for split in ("train", "validation") for row in truth]
        pq.write_table(pa.Table.from_pylist(both), pairs / "truth.parquet")
        shutil.copy(pairs / "train.parquet", pairs / "validation.parquet")


def curate(source: str, check: str, folder: Path) -> Path:
    """Curate the pairs, and keep the 65 % of the labels with the highest scores."""
    run, agreement = CHECKS[check]
    output = folder / "curated" / check.replace(" ", "-").replace(",", "")
    words = ["mofi", "curate", folder / "pairs" / "train.parquet", output]
    words += ["--config", "configs/curation/emoji.yaml", "--agreement", str(agreement).lower()]
    words += ["--scorer", folder / run / "model"] if run else []
    call(*words, folder=folder)
    return output


def precisions(output: Path, pairs: Path) -> dict[str, float]:
    """Precision of the best labels at recall 0.8, in the three readings."""
    base = KnowledgeBase(output / "stages" / "knowledge_base" / "built")
    truth = Truth.load(pairs / "truth.parquet", ["train"], base)
    linked, ranked = (Stage(output / "stages" / name, "") for name in ("linked", "ranked"))
    texts = pq.read_table(pairs / "train.parquet", columns=["text"])["text"].to_pylist()
    scores, correct, alone, shown = [], [], [], []
    for number in range(len(list(ranked.folder.glob("*.parquet")))):
        table = linked.read(number, "key", "entities")
        shown.append(truth.shown(table["key"].to_pylist()))
        candidates = np.bincount(flat(table["entities"])[1], minlength=len(table))
        best = ranked.read(number, "row", "entity", "score")
        row, entity = best["row"].to_numpy(), best["entity"].to_numpy()
        scores.append(best["score"].to_numpy())
        correct.append(shown[-1][row] == entity)
        alone.append(candidates[row] == 1)
    score, right, single = map(np.concatenate, (scores, correct, alone))
    named = truth.named(np.concatenate(shown), [text or "" for text in texts])
    return {
        "over_named": _precision(score, right, named),
        "over_correct": _precision(score, right, int(right.sum())),
        "of_one_name": _precision(score[single], right[single], int(right[single].sum())),
    }


def _precision(scores: np.ndarray, correct: np.ndarray, total: int) -> float:
    """Precision of the fewest labels, highest scores first, that have 0.8 of `total` correct ones."""
    found = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    enough = np.flatnonzero(found >= RECALL * total)
    return float(found[enough[0]] / (enough[0] + 1)) if len(enough) else float("nan")


def measure(source: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """The precisions of every check."""
    write_pairs(source, seed, folder)
    make("clip-pairs/model/config.json", source, seed, folder)
    make("clip-i2e/model/config.json", source, seed, folder)
    return {check: precisions(curate(source, check, folder), folder / "pairs") for check in CHECKS}


def main() -> None:
    """Run all seeds, print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/label_quality"))
    parser.add_argument("--sources", nargs="+", choices=list(STEPS), default=list(STEPS))
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for source in options.sources:
        seeds = range(1, options.seeds + 1)
        found = [measure(source, seed, options.folder.resolve() / source / f"seed-{seed}") for seed in seeds]
        print(f"\n{source}: precision at recall {RECALL}, {options.seeds} seeds")
        print(f"{'check':<32}{'over named':>24}{'over correct':>24}{'of one name':>24}")
        for check in CHECKS:
            cells = []
            for reading in ("over_named", "over_correct", "of_one_name"):
                values = [one[check][reading] for one in found]
                cells.append(" ".join(f"{value:.3f}" for value in values))
                name = f"{source}_{check.replace(' ', '_').replace(',', '')}_{reading}"
                figures[name] = round(statistics.mean(values), 4)
            print(f"{check:<32}" + "".join(f"{cell:>24}" for cell in cells))
    print(json.dumps({"benchmark": "label_quality", "figures": figures}))


if __name__ == "__main__":
    main()
