import json
from pathlib import Path

import pytest
import torch

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.evaluation import embedding

COLUMNS = [
    "model", "map", "map_with_self", "knn", "zero_shot_top1", "zero_shot_top5", "image_text_r1", "seconds",
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


def test_evaluate_compares_models_and_a_second_run_embeds_nothing(
    tmp_path, emoji_slice, run, capsys, monkeypatch
):
    words = [
        "evaluate",
        str(emoji_slice / "test.parquet"),
        str(tmp_path),
        "--models",
        "pixels",
        f"clip={run}",
    ]
    main(words)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [list(row) for row in rows] == [COLUMNS, COLUMNS]
    assert [row["model"] for row in rows] == ["pixels", "clip"]
    assert rows[0]["zero_shot_top1"] is rows[0]["image_text_r1"] is rows[0]["seconds"] is None
    assert rows[1]["seconds"] == 12.5
    assert all(0 <= rows[1][column] <= 1 for column in COLUMNS[1:-1])
    details = json.loads((tmp_path / "details.json").read_text())
    assert details["models"]["clip"]["map_se"] > 0
    assert "Retrieval mAP on validation images" in (tmp_path / "report.html").read_text()
    head = capsys.readouterr().out.splitlines()[0].split()
    assert (
        " ".join(head) == "model mAP mAP with self kNN zero-shot top-1 zero-shot top-5 image-text R@1 seconds"
    )

    monkeypatch.setattr(embedding, "decode", None)  # whatever would be embedded again would fail
    main(words)
    assert json.loads((tmp_path / "results.json").read_text()) == rows


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["clip"], "model 'clip' is neither NAME=PATH nor pixels"),
        (["a=/nowhere"], "model 'a': nothing is at /nowhere"),
        (["pixels", "pixels"], "two models are called 'pixels'"),
    ],
)
def test_models_that_cannot_be_used_end_with_one_line(tmp_path, emoji_slice, capsys, models, message):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(emoji_slice / "test.parquet"), str(tmp_path), "--models", *models])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_standard_configuration_gives_the_default_measures(tmp_path, emoji_slice):
    data, config = (
        emoji_slice / "test.parquet",
        Path(__file__).parents[2] / "configs" / "evaluation" / "standard.yaml",
    )
    main(["evaluate", str(data), str(tmp_path / "config"), "--config", str(config)])
    main(["evaluate", str(data), str(tmp_path / "default")])
    read = [json.loads((tmp_path / name / "details.json").read_text()) for name in ("config", "default")]
    assert read[0] == read[1]


def test_the_counts_of_a_data_set_are_taken_from_its_folder_or_file(tmp_path, emoji_slice):
    file = tmp_path / "i2e" / "curation.json"
    file.parent.mkdir()
    file.write_text('{"steps": [{"step": "linked", "labels": 1234}]}')
    for given in (file, file.parent):
        words = [str(emoji_slice / "test.parquet"), str(tmp_path / "out"), "--curation", str(given)]
        main(["evaluate", *words])
        counts = json.loads((tmp_path / "out" / "curation.json").read_text())
        assert counts["i2e"]["steps"][0]["labels"] == 1234
