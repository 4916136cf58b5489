"""The quickstart's own commands, from pairs to report, on the committed slice of real drawings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mofi_lightning import load

ROOT = Path(__file__).parents[1]
MODELS = ["pixels", "clip-pairs", "clip-i2e", "devise", "entity-unchecked", "entity", "mofi"]
MEASURES = ["map", "map_with_self", "knn", "zero_shot_top1", "zero_shot_top5", "image_text_r1", "seconds"]


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

    results = json.loads((folder / "results.json").read_text())
    assert [row["model"] for row in results] == MODELS
    for row in results:
        assert list(row) == ["model", *MEASURES]
        assert 0 < row["map"] < row["map_with_self"] <= 1 and 0 <= row["knn"] <= 1
        with_text = row["model"] in ("clip-pairs", "clip-i2e", "mofi")
        assert (row["image_text_r1"] is not None) == with_text
        assert (row["zero_shot_top5"] is not None) == (with_text or row["model"] == "devise")
        assert (row["seconds"] is None) == (row["model"] == "pixels")

    steps = json.loads((folder / "curation.json").read_text())
    for name in ("i2e-unchecked", "i2e"):
        for step in steps[name]["steps"]:
            assert {"step", "labels", "entities", "precision", "recall", "coverage"} <= set(step)
    assert steps["i2e"]["steps"][-1]["labels"] < steps["i2e-unchecked"]["steps"][-1]["labels"]

    report = (folder / "report.html").read_text()
    assert all(model in report for model in MODELS) and "data:image/" in report
    assert "http://" not in report.replace("http://www.w3.org", "") and "<script src" not in report

    model = load(folder / "mofi" / "model")
    assert model.encode_text(["dog face"]).shape == (1, 128)

    assert "mofi" not in quickstart(folder, emoji_slice, 12)
