"""Every command and every block of Python in the README runs as printed, on small data and in few steps."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mofi_lightning import DualEncoder, DualEncoderConfig, Embeddings, ObjectiveSpec, cli
from mofi_lightning.encoders.text import TextConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
# a plugin must be installed before it trains: tests/test_new_plugin.py does what the README says
MOFI = [c for c in COMMANDS if c.startswith("mofi ") and "demo/" not in c]
OUTPUTS = re.findall(r"```\n(Cosine.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# what makes a command of the README fit for a test: the real recipe, a small encoder, a few rows, one step
SMALL = (
    "--model.encoder.image mofi/tiny --model.encoder.preprocess.size 32 --model.encoder.text.width 32 "
    "--model.encoder.text.layers 1 --model.encoder.text.heads 2 --model.encoder.embed_dim 16 "
    "--trainer.max_steps 1 --trainer.accelerator cpu "
    "--data.init_args.num_workers 0 --data.init_args.sources.{}.rows 16"
)
PRETRAINED = (
    "--trainer.max_steps 1 --trainer.accelerator cpu --data.init_args.num_workers 0 "
    "--data.init_args.sources.{}.rows 4 {}"
)
EXTRA = {
    "mofi curate": "--min_images 1",
    "mofi fit --config configs/fit/clip.yaml": SMALL.format("pairs"),
    "mofi fit --config configs/fit/entity.yaml": "--trainer.max_steps 1 --data.init_args.sources.i2e.rows 16",
    "mofi fit --config configs/fit/mofi.yaml": SMALL.format("i2e"),
    "mofi validate --config configs/fit/mofi.yaml": SMALL.format("i2e"),
    "mofi fit --config configs/fit/align.yaml": SMALL.format("pairs"),
    "mofi fit --config configs/fit/lit.yaml": PRETRAINED.format("pairs", "--model.encoder.text.layers 1"),
    "mofi fit --config configs/fit/devise": PRETRAINED.format("i2e", ""),
    "mofi fit --config configs/fit/synthetic.yaml": "--trainer.accelerator cpu",
    "mofi plan": (
        "--gpus 2 --batch 64 --entities 2000 --model.encoder.image mofi/tiny --model.encoder.embed_dim 16 "
        "--model.encoder.text.width 32 --model.encoder.text.layers 2 --model.encoder.text.heads 2"
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emoji_slice) -> Path:
    """A folder like a clone's, with the pairs that the README's first command would fetch."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(emoji_slice, folder / "pairs")
    label = {"language": "en", "value": "cat"}
    item = {"type": "item", "id": "Q146", "labels": {"en": label}, "claims": {}}
    with gzip.open(folder / "latest-all.json.gz", "wt") as dump:
        dump.write(f"[\n{json.dumps(item)}\n]\n")
    return folder


def run(command: str, folder: Path) -> None:
    """Run in this process, which has imported everything; what starts processes itself, in one of its own."""
    extra = next((words for start, words in EXTRA.items() if command.startswith(start)), "")
    words = shlex.split(f"{command} {extra}")[1:]
    if "--trainer.devices" not in words:
        try:
            cli.main(words)
        except SystemExit as end:
            assert not end.code, command
        return
    module = [sys.executable, "-m", "mofi_lightning", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(module, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_names_every_verb():
    assert not {verb for verb in cli.VERBS if not any(c.startswith(f"mofi {verb}") for c in MOFI)}


@pytest.mark.timeout(400)
def test_the_commands_run_in_the_order_in_which_they_stand(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for command in MOFI:
        run(command, folder)
    assert (folder / "evaluation" / "report.html").is_file() and (folder / "runs" / "mofi" / "model").is_dir()


def test_the_makes_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in re.findall(r"make ([a-z -]+)", README) for target in line.split()[:1]}
    assert named <= targets and {"quickstart", "test", "env"} <= named


def test_the_python_of_the_readme_runs(folder, monkeypatch):
    using, writing, checking = PYTHON
    with torch.random.fork_rng():
        config = DualEncoderConfig(text=TextConfig(32, 1, 2, 32), embed_dim=16)
        DualEncoder.from_config(config).save(folder / "runs" / "mofi" / "model")
    Image.new("RGB", (40, 30), (200, 10, 10)).save(folder / "cat.jpg")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(using, names)
    assert names["texts"].shape[0] == 2 and torch.allclose(names["features"].norm(dim=1), torch.ones(1))

    names = {}
    exec(writing, names)
    objective = names["Cosine"](ObjectiveSpec(4, 8))
    one = torch.nn.functional.normalize(torch.ones(2, 4), dim=1)
    assert objective(Embeddings(image=one, text=one), {}).loss.item() == pytest.approx(0, abs=1e-6)
    assert objective(Embeddings(image=one, text=-one), {}).loss.item() == pytest.approx(2)
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        exec(checking, names)
    assert re.sub(r"\d+\.\d+ MB", "N MB", report.getvalue()).startswith(OUTPUTS[0].partition("contract,")[0])
