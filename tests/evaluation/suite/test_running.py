import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.evaluation.datasets import ClassFolders, PairsFile
from mofi_lightning.evaluation.evaluators import KNN, Retrieval
from mofi_lightning.evaluation.models.words import parse_models
from mofi_lightning.evaluation.suite.results import read_result, read_results, result_file
from mofi_lightning.evaluation.suite.running import SuiteRun
from mofi_lightning.evaluation.suite.suite import Suite, Task, load_suites
from mofi_lightning.types import InputError


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A model whose embeddings are not finite."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    torch.manual_seed(0)
    DualEncoder.from_config(DualEncoderConfig()).save(folder)
    weights = load_file(folder / "model.safetensors")
    name = "image.projection.weight"
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, folder / "model.safetensors")
    return folder


def _suite(emoji_slice: Path) -> Suite:
    return Suite({"emoji": Task(PairsFile(emoji_slice / "test.parquet"), [Retrieval(), KNN()])})


def test_a_model_with_embeddings_that_are_not_finite_is_named_and_the_others_go_on(
    tmp_path, emoji_slice, broken, capsys
):
    with pytest.raises(SystemExit):
        main(
            [
                "evaluate",
                "--model",
                f"broken={broken}",
                "pixels",
                "--data",
                str(emoji_slice / "test.parquet"),
                "--output",
                str(tmp_path),
            ]
        )
    assert {result.model for result in read_results(tmp_path)} == {"pixels"}
    error = capsys.readouterr().err
    assert "mofi: broken on emoji_slice/test: " in error
    assert "embeddings of broken are not finite" in error
    assert "1 of the evaluations failed; the lines above say why" in error


def test_images_that_cannot_be_decoded_are_named(tmp_path, emoji_slice):
    data = PairsFile(emoji_slice / "test.parquet").open()
    for row, image in enumerate(data.images[:6]):
        file = tmp_path / "set" / "ab"[row % 2] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image if row != 3 else b"no image")
    suite = Suite({"set": Task(ClassFolders(tmp_path / "set"), [Retrieval()])})
    (found,) = SuiteRun(parse_models(["pixels"]), suite, tmp_path / "out")
    notes = found.results["retrieval"].notes
    assert "1 images left out: no JPEG, PNG, GIF or WebP image (b/3.png)" in notes
    assert found.results["retrieval"].metrics["queries"] == 5


def test_a_damaged_result_is_made_anew_with_the_same_numbers(tmp_path, emoji_slice, caplog):
    run = SuiteRun(parse_models(["pixels"]), _suite(emoji_slice), tmp_path)
    (first,) = run
    file = result_file(tmp_path, "pixels", "emoji", "retrieval")
    for damaged in (file, file.with_suffix(".safetensors")):
        damaged.write_bytes(damaged.read_bytes()[:-30])
        (again,) = run
        assert "is no result of `mofi evaluate`" in caplog.text
        assert again.results["retrieval"].metrics == first.results["retrieval"].metrics
        assert read_result(file).scores["map"].values.equal(first.results["retrieval"].scores["map"].values)


def test_a_result_of_another_data_set_under_the_same_name_is_not_taken(tmp_path, emoji_slice):
    (first,) = SuiteRun(parse_models(["pixels"]), _suite(emoji_slice), tmp_path)
    other = Suite({"emoji": Task(PairsFile(emoji_slice / "validation.parquet"), [Retrieval(), KNN()])})
    (second,) = SuiteRun(parse_models(["pixels"]), other, tmp_path)
    assert second.results["knn"].counts != first.results["knn"].counts
    assert second.results["knn"].settings_hash != first.results["knn"].settings_hash


def test_names_that_no_file_can_have_do_not_collide_or_leave_the_folder(tmp_path):
    names = ["a/b", "a_b", "a\\b", "../../x", "..", "", "a b", "é", "x" * 300, "x" * 301]
    names += [result_file(tmp_path, name, "d", "t").parts[-3] for name in names]
    names = list(dict.fromkeys(names))
    files = {result_file(tmp_path, name, "d", "t") for name in names}
    assert len(files) == len(names)
    assert all(file.resolve().is_relative_to(tmp_path / "results") for file in files)
    assert all(len(file.relative_to(tmp_path).parts) == 4 for file in files)


def test_a_results_file_is_what_clip_benchmark_writes_and_more(tmp_path, emoji_slice):
    list(SuiteRun(parse_models(["pixels"]), _suite(emoji_slice), tmp_path))
    content = json.loads(result_file(tmp_path, "pixels", "emoji", "retrieval").read_text())
    assert content["dataset"] == "emoji"
    assert content["task"] == "retrieval"
    assert content["model"] == content["pretrained"] == "pixels"
    assert content["metrics"]["map"] > 0
    assert {"torch", "mofi-lightning"} <= set(content["versions"])
    assert len(content["settings_hash"]) == 32


def test_scores_beside_the_result_of_another_run_are_not_taken(tmp_path, emoji_slice):
    suite = _suite(emoji_slice)
    (first,) = SuiteRun(parse_models(["pixels"]), suite, tmp_path)
    file = result_file(tmp_path, "pixels", "emoji", "retrieval")
    content = file.read_text()
    other = Suite({"emoji": Task(PairsFile(emoji_slice / "validation.parquet"), [Retrieval(), KNN()])})
    list(SuiteRun(parse_models(["pixels"]), other, tmp_path))
    file.write_text(content)  # as if the disk had been full between the scores and the JSON
    with pytest.raises(InputError, match="is of another result"):
        read_result(file)
    (again,) = SuiteRun(parse_models(["pixels"]), suite, tmp_path)
    assert (
        again.results["retrieval"].scores["map"].values.equal(first.results["retrieval"].scores["map"].values)
    )


def test_another_version_of_a_plugins_code_measures_again(tmp_path, emoji_slice, monkeypatch):
    package = tmp_path / "packages" / "my_measures"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "number.py").write_text("VALUE = 1.0\n")
    (package / "evaluator.py").write_text(
        "from mofi_lightning.evaluation.base import Evaluator, Measurement\n"
        "from my_measures import number\n"
        "class Mine(Evaluator):\n"
        "    task, measures = 'mine', ('value',)\n"
        "    def __call__(self, embedder, data):\n"
        "        return Measurement(values={'value': number.VALUE})\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    evaluator = importlib.import_module("my_measures.evaluator").Mine()
    suite = Suite({"emoji": Task(PairsFile(emoji_slice / "test.parquet"), [evaluator])})

    def measured() -> float | None:
        (found,) = SuiteRun(parse_models(["pixels"]), suite, tmp_path / "out")
        return found.results["mine"].metrics["value"]

    assert measured() == 1
    sys.modules["my_measures.number"].VALUE = 2.0
    assert measured() == 1  # the files are as they were
    (package / "number.py").write_text("VALUE = 2.0\n")
    assert measured() == 2


def test_a_data_set_that_stands_twice_in_a_file_is_named(tmp_path):
    file = tmp_path / "suite.yaml"
    task = "{data: {class_path: GPR1200, init_args: {path: x}}}"
    file.write_text(f"tasks:\n  a: {task}\n  a: {task}\n")
    with pytest.raises(InputError, match="'a' is there twice"):
        load_suites([file], [])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "holds none"),
        ("[1]", "holds none"),
        ("tsks: {}", "has tsks"),
        ("tasks: 1\nmacro: 1", "has tasks, macro"),
    ],
)
def test_a_file_without_tasks_or_with_more_says_what_it_has(tmp_path, content, found):
    file = tmp_path / "suite.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=f"suite.yaml is no suite: its one key is `tasks`.*{found}"):
        load_suites([file], [])
