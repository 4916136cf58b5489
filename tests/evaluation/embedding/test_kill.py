"""`mofi evaluate` and `mofi embed`, killed at any moment and started again, give what they would have."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.evaluation.embedding.store import EmbeddingStore
from mofi_lightning.evaluation.models.words import parse_models
from mofi_lightning.evaluation.suite.running import SuiteRun
from mofi_lightning.evaluation.suite.suite import load_suites

IMAGES = 1100
COPIES = 100  # of the first images, at the end
HEADER, RECORD = 64, 16 + (8 + 192) * 4 + 4
PART = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ours"
    torch.manual_seed(0)
    text = TextConfig(width=16, layers=1, heads=2)
    DualEncoder.from_config(DualEncoderConfig(embed_dim=8, text=text)).save(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of 10 classes; one image is broken."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    for row in range(IMAGES + COPIES):
        file = folder / f"class_{row % 10}" / f"{row:05}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[row % IMAGES]).save(file, compress_level=0)
    (folder / "class_3" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def suite(images) -> Path:
    file = images.parent / "suite.yaml"
    tasks = {
        "images": {
            "data": {"class_path": "ClassFolders", "init_args": {"path": str(images)}},
            "evaluators": [{"class_path": "Retrieval"}, {"class_path": "ZeroShot"}],
        }
    }
    file.write_text(json.dumps({"tasks": tasks}))
    return file


def killed(words: list[str], moment: Callable[[], bool]) -> bool:
    """Run `mofi` and kill it at `moment`; whether it had not ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mofi_lightning", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and not moment():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), error.decode()
    return process.returncode != 0


def bytes_of(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


def results(output: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for file in sorted((output / "results").rglob("*.json")):
        found[file.name] = json.loads(file.read_text())["metrics"]
        scores = load_file(file.with_suffix(".safetensors"))
        found |= {f"{file.name} {name}": tensor.numpy().tobytes() for name, tensor in scores.items()}
    assert {"retrieval.json", "retrieval.json map.values", "zeroshot_classification.json"} <= found.keys()
    return found


def embedded(output: Path) -> int:
    """Records of the images, which are whole and of different images."""
    (file,) = (output / "cache").glob("*.images")
    count, rest = divmod(file.stat().st_size - HEADER, RECORD)
    assert rest == 0
    assert len(EmbeddingStore(file)) == count
    records = np.memmap(file, np.dtype([("content", "S16"), ("rest", f"V{RECORD - 16}")]), "r", HEADER)
    assert len(np.unique(records["content"])) == count
    return count


def check_evaluation(tmp_path: Path, model: Path, suite: Path, kills: int, seed: int) -> None:
    print("seed", seed)
    draw = random.Random(seed)
    words = ["evaluate", "--model", f"ours={model}", "--suite", str(suite), "--output"]
    output = tmp_path / "killed"
    hits = 0
    for kill in range(kills):
        least = HEADER + RECORD * draw.randrange(kill * IMAGES // kills, (kill + 1) * IMAGES // kills - 256)
        hits += killed([*words, str(output)], lambda: bytes_of(output, "cache/*.images") > least)  # noqa: B023
    assert hits == kills
    before = bytes_of(output, "cache/*.images")
    assert HEADER < before < HEADER + RECORD * IMAGES
    for folder in (output, tmp_path / "whole"):
        assert len([*SuiteRun(parse_models([f"ours={model}"]), load_suites([suite], []), folder)]) == 1
    assert results(output) == results(tmp_path / "whole")
    assert embedded(output) == embedded(tmp_path / "whole") == IMAGES


@pytest.mark.timeout(120)
def test_a_killed_evaluation_goes_on_and_embeds_nothing_twice(tmp_path, model, suite):
    check_evaluation(tmp_path, model, suite, kills=1, seed=random.SystemRandom().randrange(10**6))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_an_evaluation_may_be_killed_again_and_again(tmp_path, model, suite, seed):
    check_evaluation(tmp_path, model, suite, kills=3, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_killed_embedding_goes_on_with_the_parts_that_are_missing(tmp_path, model, images, form):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    words = ["--format", form, "--features", "true", "--part_images", str(PART), "--batch_size", "64"]
    output, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(4):
        parts = draw.randrange(7)
        delay = draw.random() * 0.2
        since: list[float] = []

        def moment(parts: int = parts, delay: float = delay, since: list[float] = since) -> bool:
            if len([*output.glob("part-*")]) >= parts:
                since.append(time.monotonic())
            return bool(since) and time.monotonic() > since[0] + delay

        killed(["embed", str(model), str(images), str(output), *words], moment)
    times = {file: file.stat().st_mtime_ns for file in output.glob(f"part-0000?.{form}")}
    main(["embed", str(model), str(images), str(output), *words])
    assert {file: file.stat().st_mtime_ns for file in times} == times
    main(["embed", str(model), str(images), str(whole), *words])
    left = {f"{f.relative_to(whole)}": f.read_bytes() for f in whole.rglob("*") if f.is_file()}
    assert {name: (output / name).read_bytes() for name in left} == left
    assert sorted(f.name for f in output.glob("part-*")) == sorted(f.name for f in whole.glob("part-*"))
