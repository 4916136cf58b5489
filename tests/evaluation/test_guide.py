"""Every command and every block of docs/evaluation.md runs as printed, on small data."""

import re
import shlex
import shutil
import sys
from abc import ABCMeta
from collections.abc import Iterator
from pathlib import Path

import datasets
import mteb
import pytest
import torch
import torch.nn.functional as F
import yaml
from mteb.tasks.zeroshot_classification.eng.cifar import CIFAR10ZeroShotClassification
from torch import Tensor

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig, load
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.evaluation import datasets as datasets_of_ours
from mofi_lightning.evaluation import evaluators
from mofi_lightning.evaluation.datasets import EvaluationSet, PairsFile
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.suite.results import read_results
from mofi_lightning.training.monitoring.evaluation import Evaluation

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "evaluation.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()
]
PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
# of the slice's test images, for lists of images: the training images show none of their entities
SPLITS = {"train": slice(0, None, 2), "test": slice(1, None, 2)}
YAML = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emoji_slice) -> Path:
    """A folder in which someone follows the guide: pairs, a trained model, lists of images."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(emoji_slice, folder / "pairs")
    torch.manual_seed(0)
    DualEncoder.from_config(DualEncoderConfig(text=TextConfig())).save(folder / "runs" / "clip" / "model")
    (folder / "images").mkdir()
    data = PairsFile(emoji_slice / "test.parquet").open()
    for split, rows in SPLITS.items():
        write_list(folder / "images" / f"{split}.tsv", data, rows)
    for block in (*PYTHON, *YAML):
        if named := re.match(r"# (\w+\.\w+)\n", block):
            (folder / named[1]).write_text(block)
    return folder


def write_list(path: Path, data: EvaluationSet, rows: slice) -> None:
    lines = []
    for row in range(len(data.keys))[rows]:
        file = f"{row}.png"
        (path.parent / file).write_bytes(data.images[row])
        lines.append(f"{file}\t{data.names[data.entities[row]]}\n")
    path.write_text("".join(lines))


def nearest_mean(folder: Path) -> float:
    """What the guide's evaluator should find, class by class."""
    data = PairsFile(folder / "pairs" / "test.parquet").open()
    vectors = Embedder(load(folder / "runs" / "clip" / "model")).embed_images(data.images).embeddings
    of_class: dict[str, list[Tensor]] = {}
    for entity, vector in zip(data.entities[SPLITS["train"]], vectors[SPLITS["train"]], strict=True):
        of_class.setdefault(entity, []).append(vector)
    means = {entity: F.normalize(sum(of) / len(of), dim=0) for entity, of in of_class.items()}
    found = [max(means, key=lambda e, v=v: float(v @ means[e])) for v in vectors[SPLITS["test"]]]
    right = [a == b for a, b in zip(found, data.entities[SPLITS["test"]], strict=True)]
    return sum(right) / len(right)


@pytest.fixture
def there(folder, monkeypatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder
    sys.modules.pop("my_evaluation", None)


def test_commands_run_as_printed(there, capsys):
    assert [command.split()[0] for command in COMMANDS] == ["mofi"] * 5
    for command in COMMANDS:
        main(shlex.split(command)[1:])
    assert "| clip" in capsys.readouterr().out
    assert {result.model for result in read_results(there / "evaluation")} == {"pixels", "clip"}
    mine = {result.task: result for result in read_results(there / "mine")}
    assert set(mine) == {"nearest_mean", "knn"}
    value = mine["nearest_mean"].metrics["nearest_mean_acc1"]
    low, high = mine["nearest_mean"].intervals["nearest_mean_acc1"]
    assert 0 < low <= value <= high
    assert value == pytest.approx(nearest_mean(there))


@pytest.mark.parametrize("module", (datasets_of_ours, evaluators))
def test_every_data_set_and_evaluator_stands_in_the_guide(module):
    classes = [name for name in module.__all__ if isinstance(getattr(module, name), ABCMeta)]
    assert len(classes) > 5
    assert [name for name in classes if f"`{name}`" not in GUIDE] == []


def test_what_the_guide_says_is_written_is_written(there):
    if not (there / "evaluation").is_dir():
        main(shlex.split(COMMANDS[0])[1:])
    for name in ("table.md", "table.csv", "report.html", "cache"):
        assert f"`{name}" in GUIDE
        assert (there / "evaluation" / name).exists()
    assert list((there / "evaluation" / "results").glob("*/*/*.safetensors"))


def test_python_runs_as_printed(there, capsys, monkeypatch, tmp_path):
    data = PairsFile(there / "pairs" / "test.parquet").open()
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=data.class_names))
    images = [{"bytes": image, "path": None} for image in data.images]
    rows = datasets.Dataset.from_dict({"img": images, "label": data.labels().tolist()}, features)
    rows.to_parquet(tmp_path / "data" / "test.parquet")

    def get_task(name: str) -> CIFAR10ZeroShotClassification:
        """The task as it is, but for its data, which would come from a hub."""
        task = CIFAR10ZeroShotClassification()
        assert task.metadata.name == name
        local = {"path": str(tmp_path / "data"), "revision": "local"}
        task.metadata = task.metadata.model_copy(update={"dataset": local})
        return task

    monkeypatch.setattr(mteb, "get_task", get_task)
    monkeypatch.setattr(
        sys.modules["mteb.evaluate"], "_DEFAULT_CACHE", mteb.ResultCache(tmp_path / "results")
    )
    monkeypatch.setitem(mteb.evaluate.__kwdefaults__, "cache", mteb.ResultCache(tmp_path / "results"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    scripts = [block for block in PYTHON if not block.startswith("# my_evaluation.py")]
    for block in scripts:
        exec(compile(block, "evaluation.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(scripts) == 2
    assert "mofi-lightning/clip" in printed


def test_the_callback_of_the_guide_can_be_made():
    from jsonargparse import ArgumentParser

    callbacks = next(yaml.safe_load(block) for block in YAML if "callbacks" in block)["trainer"]["callbacks"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Evaluation, "callback")
    made = parser.instantiate_classes(parser.parse_object({"callback": callbacks[0]})).callback
    assert [evaluator.task for evaluator in made.evaluators] == ["retrieval", "zeroshot_classification"]
    assert made.every_n_steps == 1000
