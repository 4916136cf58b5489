import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.evaluation.datasets import PairsFile
from mofi_lightning.evaluation.evaluators import KNN, Retrieval
from mofi_lightning.evaluation.models.words import parse_models
from mofi_lightning.evaluation.suite.results import read_result, read_results, result_file
from mofi_lightning.evaluation.suite.running import SuiteRun
from mofi_lightning.evaluation.suite.suite import Suite, Task


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
    names = ["a/b", "a_b", "a\\b", "../../x", "..", "", "a b", "é"]
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
