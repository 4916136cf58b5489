"""`mofi new-plugin` writes a package that installs, trains and passes its own tests as it is."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mofi_lightning.cli import main
from mofi_lightning.plugin_template import new_plugin, write_package
from mofi_lightning.types import InputError

ROOT = Path(__file__).parents[1]


def run(words: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def install_copy(command: str, folder: Path) -> str:
    """Install as printed, but a copy instead of a link into the environment, and without the network."""
    site = str(folder / "site")
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", site]
    words = command.split()
    assert words == ["pip", "install", "-e", "./demo"]
    run([sys.executable, "-m", *(word for word in words if word != "-e"), *quiet], folder)
    return site


def test_the_commands_that_it_prints_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["new-plugin", "demo"])
    install, fit, test = capsys.readouterr().out.splitlines()[-3:]
    python, site = [sys.executable, "-m"], install_copy(install, tmp_path)
    few = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--data.init_args.rows", "16"]
    assert fit.split() == ["mofi", "fit", "-c", "demo/config.yaml"]
    run([*python, "mofi_lightning", *fit.split()[1:], *few], tmp_path, PYTHONPATH=site)
    assert (tmp_path / "runs" / "demo" / "model" / "model.safetensors").is_file()
    assert test.split() == ["pytest", "demo"]
    assert " passed" in run([*python, *shlex.split(test), "-q"], tmp_path, PYTHONPATH=site)


def test_the_commands_for_a_source_work_and_it_reads_pairs(tmp_path, monkeypatch, capsys, emoji_slice):
    monkeypatch.chdir(tmp_path)
    main(["new-plugin", "demo", "--kind", "source"])
    install, pairs, test = capsys.readouterr().out.splitlines()[-3:]
    site = install_copy(install, tmp_path)
    assert pairs.split() == ["mofi", "pairs", "demo", "--help"]
    mofi = [sys.executable, "-m", "mofi_lightning"]
    assert "--path PATH" in run([*mofi, *pairs.split()[1:]], tmp_path, PYTHONPATH=site)
    row = pq.read_table(emoji_slice / "test.parquet").to_pylist()[0]
    (tmp_path / "one.png").write_bytes(row["image"])
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "one.png", "text": row["text"]}) + "\n")
    words = ["pairs", "demo", "--path", "list.jsonl", "--output", "pairs"]
    run([*mofi, *words], tmp_path, PYTHONPATH=site)
    assert pq.read_table(tmp_path / "pairs" / "train.parquet").to_pylist() == [{**row, "key": "one.png"}]
    assert test.split() == ["pytest", "demo"]
    assert " passed" in run([sys.executable, "-m", *test.split(), "-q"], tmp_path, PYTHONPATH=site)


def test_the_template_among_the_plugins_is_what_it_writes(tmp_path):
    write_package("template", tmp_path)
    assert files(tmp_path) == files(ROOT / "plugins" / "template")


@pytest.mark.parametrize("kind", ["objective", "source"])
def test_what_it_writes_is_clean_whatever_the_name(kind, tmp_path):
    write_package("zero-shot-teacher", tmp_path, kind)
    assert "tests/test_zero_shot_teacher.py" in files(tmp_path)
    assert not [name for name, text in files(tmp_path).items() if "{{" in text or "}}" in text]
    ruff = [sys.executable, "-m", "ruff"]
    sources = f"src = ['{tmp_path}/src', '{ROOT}/src']"
    config = ["--config", str(ROOT / "pyproject.toml"), "--config", sources, "--no-cache"]
    run([*ruff, "check", *config, str(tmp_path / "src")], ROOT)
    run([*ruff, "check", *config, "--ignore", "D", str(tmp_path / "tests")], ROOT)
    run([*ruff, "format", "--check", *config, str(tmp_path)], ROOT)


def test_the_wheel_of_the_library_carries_the_template(tmp_path):
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mofi_lightning/plugin_")}
    package = ROOT / "src" / "mofi_lightning" / "plugin_template"
    templates = {path.relative_to(package).as_posix() for path in package.rglob("*.tmpl")}
    assert {f"mofi_lightning/plugin_template/{name}" for name in templates} < inside


@pytest.mark.parametrize(
    "name, complaint",
    (
        ("Demo", "lower-case words"),
        ("2d", "lower-case words"),
        ("a--b", "lower-case words"),
        ("../x", "lower-case words"),
        ("class", "already means something"),
        ("objective", "already means something"),
        ("source", "already means something"),
        ("timm", "is taken"),
        ("lightning", "a module mofi_lightning is installed"),
    ),
)
def test_names_that_cannot_be_used_are_refused(name, complaint, tmp_path):
    with pytest.raises(InputError, match=complaint):
        new_plugin(name, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'demo' exists; give another --output"):
        new_plugin("demo")
    assert not files(tmp_path)


def test_kebab_names_become_valid_python(tmp_path, capsys):
    new_plugin("hard-negatives", str(tmp_path / "new"))
    written = files(tmp_path / "new")
    assert 'hard_negatives = "mofi_hard_negatives:HardNegatives"' in written["pyproject.toml"]
    assert "class HardNegatives(Objective):" in written["src/mofi_hard_negatives/objective.py"]
    assert f"pip install -e {tmp_path}/new\n" in capsys.readouterr().out
