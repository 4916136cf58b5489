import json
from pathlib import Path

import pytest
import torch

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.evaluation.embedding import images as embedding
from mofi_lightning.evaluation.suite.results import read_results

MEASURES = [
    "map", "map_with_self", "knn_acc1", "acc1", "acc5", "image_retrieval_recall@1", "text_retrieval_recall@1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a training run with a small model in it."""
    folder = tmp_path_factory.mktemp("runs") / "clip"
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a picture of a whale", "boar"] * 20, 300)
    DualEncoder.from_config(DualEncoderConfig(text=TextConfig()), tokenizer).save(folder / "model")
    (folder / "summary.json").write_text('{"seconds": 12.5}')
    (folder / "metrics.csv").write_text("step,val/map\n10,0.1\n20,0.2\n")
    return folder


def _evaluate(*words) -> None:
    main(["evaluate", *map(str, words)])


def test_evaluate_compares_models_and_a_second_run_makes_nothing_again(
    tmp_path, emoji_slice, run, capsys, monkeypatch
):
    words = ("--model", "pixels", f"clip={run}", "--data", emoji_slice / "test.parquet", "--output", tmp_path)
    _evaluate(*words)
    results = {(r.model, r.task): r for r in read_results(tmp_path)}
    assert {model for model, _ in results} == {"pixels", "clip"}
    assert "no text tower" in results["pixels", "zeroshot_classification"].skipped
    retrieval = results["clip", "retrieval"]
    assert retrieval.training_seconds == 12.5
    low, high = retrieval.intervals["map"]
    assert low < retrieval.metrics["map"] < high
    assert retrieval.pretrained == str(run)
    printed = capsys.readouterr().out
    assert printed.startswith("| data set")
    assert (tmp_path / "table.md").read_text().partition("\n\n")[0] in printed
    table = (tmp_path / "table.csv").read_text()
    assert set(MEASURES) <= set(table.splitlines()[0].split(","))
    assert "Retrieval mAP on validation images" in (tmp_path / "report.html").read_text()

    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "results").rglob("*")}
    monkeypatch.setattr(embedding, "decode", None)  # whatever would be embedded again would fail
    _evaluate(*words)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "results").rglob("*")} == files
    assert (tmp_path / "table.csv").read_text() == table

    main(["evaluate", "table", str(tmp_path)])
    assert (tmp_path / "table.csv").read_text().splitlines()[0].split(",")[:2] == ["dataset", "model"]


def test_a_model_added_later_is_compared_with_what_is_there(tmp_path, emoji_slice, run, capsys):
    data = ("--data", emoji_slice / "test.parquet", "--output", tmp_path)
    _evaluate("--model", "pixels", *data)
    _evaluate("--model", "pixels", f"clip={run}", *data)
    differences = (tmp_path / "table.md").read_text().partition("| better ")[2]
    assert "| map " in differences and "pixels" in differences and "clip" in differences
    _evaluate("--model", f"clip={run}", *data)
    assert "also holds results of pixels" in capsys.readouterr().out
    main(["evaluate", "table", str(tmp_path)])
    assert (tmp_path / "table.md").read_text().partition("| better ")[2] == differences


def test_another_setting_measures_again_without_embedding(tmp_path, emoji_slice, monkeypatch):
    suite = tmp_path / "suite.yaml"

    def measure(k: int) -> dict[str, float | None]:
        data = {"class_path": "PairsFile", "init_args": {"path": str(emoji_slice / "test.parquet")}}
        evaluators = [{"class_path": "Retrieval", "init_args": {"k": [k]}}]
        suite.write_text(json.dumps({"tasks": {"emoji": {"data": data, "evaluators": evaluators}}}))
        _evaluate("--suite", suite, "--output", tmp_path / "out")
        (result,) = read_results(tmp_path / "out")
        return result.metrics

    assert "recall@3" in measure(3)
    monkeypatch.setattr(embedding, "decode", None)
    assert "recall@4" in measure(4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "a=/nowhere", "--data", "DATA"], "/nowhere"),
        (["--model", "pixels", "pixels", "--data", "DATA"], "two models are called 'pixels'"),
        (["--model", "pixels"], "nothing to evaluate on; give --data pairs/test.parquet"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--suite", "/nowhere.yaml"], "no suite at /nowhere.yaml"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_one_line(tmp_path, emoji_slice, capsys, words, message):
    words = [str(emoji_slice / "test.parquet") if word == "DATA" else word for word in words]
    with pytest.raises(SystemExit) as ended:
        _evaluate(*words, "--output", tmp_path)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_data_set_of_a_suite_is_refused_or_left_out(tmp_path, emoji_slice, capsys):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        json.dumps(
            {
                "tasks": {
                    "here": {
                        "data": {
                            "class_path": "PairsFile",
                            "init_args": {"path": str(emoji_slice / "test.parquet")},
                        },
                        "evaluators": [{"class_path": "Retrieval"}],
                    },
                    "gone": {"data": {"class_path": "GPR1200", "init_args": {"path": "/nowhere"}}},
                }
            }
        )
    )
    with pytest.raises(SystemExit):
        _evaluate("--suite", suite, "--output", tmp_path / "out")
    assert "'gone': GPR1200 is not at /nowhere" in (error := capsys.readouterr().err)
    assert "--skip_missing true" in error
    assert not (tmp_path / "out").exists()
    _evaluate("--suite", suite, "--output", tmp_path / "out", "--skip_missing", "true")
    assert [result.dataset for result in read_results(tmp_path / "out")] == ["here"]


def test_the_counts_of_a_data_set_are_taken_from_its_folder_or_file(tmp_path, emoji_slice):
    file = tmp_path / "i2e" / "curation.json"
    file.parent.mkdir()
    file.write_text('{"steps": [{"step": "linked", "labels": 1234}]}')
    for given in (file, file.parent):
        _evaluate("--data", emoji_slice / "test.parquet", "--output", tmp_path / "out", "--curation", given)
        assert "1,234" in (tmp_path / "out" / "report.html").read_text()
        (tmp_path / "out" / "report.html").unlink()


@pytest.mark.parametrize("content", ['{"steps": 3}', '{"steps": [], "undecodable_images": ["a"]}', "[]", "{"])
def test_counts_that_are_none_are_refused_before_anything_is_embedded(tmp_path, emoji_slice, capsys, content):
    (tmp_path / "curation.json").write_text(content)
    with pytest.raises(SystemExit):
        _evaluate(
            "--data", emoji_slice / "test.parquet", "--output", tmp_path / "out", "--curation", tmp_path
        )
    assert "curation.json is no" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
