"""The quickstart's own commands, from pairs to report, on the committed slice of real drawings."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mofi_lightning import load

ROOT = Path(__file__).parents[1]
MODELS = ["pixels", "clip-pairs", "clip-i2e", "devise", "entity-unchecked", "entity", "mofi"]
RETRIEVAL = ("image_retrieval_recall@1", "text_retrieval_recall@1")


def quickstart(folder: Path, pairs: Path, steps: int) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = [f"QUICKSTART={folder}", f"PAIRS={pairs}", f"STEPS={steps}"]
    done = subprocess.run(
        ["make", "-f", "configs/quickstart/quickstart.mk", *settings],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(400)
def test_the_quickstart_ends_with_results_and_report_and_a_second_run_redoes_nothing(emoji_slice, tmp_path):
    folder = tmp_path / "quickstart"
    printed = quickstart(folder, emoji_slice, 12)
    for verb in ("data tokenizer", "data build", "curate", "vectors", "fit", "evaluate"):
        assert f"mofi {verb} " in printed

    with (folder / "table.csv").open(newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == MODELS and {row["dataset"] for row in rows.values()} == {f"{emoji_slice.name}/test"}
    for model, row in rows.items():
        assert 0 < float(row["map"]) < float(row["map_with_self"]) <= 1 and 0 <= float(row["knn_acc1"]) <= 1
        with_text = model in ("clip-pairs", "clip-i2e", "mofi")
        assert {bool(row[name]) for name in RETRIEVAL} == {with_text}
        assert bool(row["acc5"]) == (with_text or model == "devise")
        (file,) = folder.glob(f"results/{model}/*/retrieval.json")
        result = json.loads(file.read_text())
        assert result["metrics"]["map"] == float(row["map"])
        assert (result["training_seconds"] is None) == (model == "pixels")

    counts = {
        name: json.loads((folder / "data" / name / "curation.json").read_text())["steps"]
        for name in ("i2e-unchecked", "i2e")
    }
    for steps in counts.values():
        for step in steps:
            assert {"step", "labels", "entities", "precision", "recall", "coverage"} <= set(step)
    assert counts["i2e"][-1]["labels"] < counts["i2e-unchecked"][-1]["labels"]

    report = (folder / "report.html").read_text()
    assert all(model in report for model in MODELS) and "data:image/" in report
    assert "http://" not in report.replace("http://www.w3.org", "") and "<script src" not in report

    model = load(folder / "mofi" / "model")
    assert model.encode_text(["dog face"]).shape == (1, 128)

    assert "mofi" not in quickstart(folder, emoji_slice, 12)
