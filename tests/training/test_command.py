"""`mofi fit` and `mofi validate` on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.test_cli import complaint

from mofi_lightning import cli, load
from mofi_lightning.data.build import build_dataset

SYNTHETIC = ["--config", "configs/fit/synthetic.yaml", "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, tmp_path):
    """Configurations are named as in the README, runs go to the test's folder."""
    monkeypatch.chdir(Path(__file__).parents[2])


def fit(root, *words: str) -> list[str]:
    return ["fit", *SYNTHETIC, "--trainer.default_root_dir", str(root), *words]


def test_five_steps_leave_a_model_a_summary_and_logs(tmp_path):
    root = tmp_path / "run"
    cli.main(fit(root, "--trainer.max_steps", "5", "--trainer.log_every_n_steps", "1"))
    assert load(root / "model").encode_text(["ba do"]).shape == (1, 64)
    summary = json.loads((root / "summary.json").read_text())
    assert summary["steps"] == 5 and summary["images_per_second"] > 0 and 0 <= summary["data_wait"] <= 1
    rows = list(csv.DictReader((root / "logs" / "version_0" / "metrics.csv").open()))
    assert sum(bool(row["train/loss"]) for row in rows) == 5
    assert any(row["train/images_per_second"] for row in rows) and any(row["train/data_wait"] for row in rows)
    assert (root / "vocabulary.arrow").is_file()


def test_validation_is_a_verb_and_reads_a_checkpoint(tmp_path, capsys):
    checkpointing = "[{class_path: StepCheckpoint, init_args: {every_n_steps: 2}}]"
    cli.main(fit(tmp_path, "--trainer.max_steps", "2", "--trainer.callbacks", checkpointing))
    words = ["validate", *SYNTHETIC, "--trainer.default_root_dir", str(tmp_path), "--ckpt_path", "last"]
    cli.main(words)
    assert "val/loss" in capsys.readouterr().out


def test_wrong_options_end_with_one_line(capsys, tmp_path):
    yaml = tmp_path / "wrong.yaml"
    yaml.write_text("trainer: {max_stepps: 5}\n")
    assert "max_stepps" in complaint(capsys, *fit(tmp_path, "--config", str(yaml)))
    misspelt = complaint(capsys, *fit(tmp_path, "--model.objective", "EntitySoftmaxx"))
    assert "model.objective: there is no class 'EntitySoftmaxx'" in misspelt
    unknown = complaint(capsys, *fit(tmp_path, "--model.objective.entity.marginn", "2"))
    assert "model.objective.entity: option 'marginn' is not accepted" in unknown
    assert "data.rows: expected int, got many" in complaint(
        capsys, *fit(tmp_path, "--data.init_args.rows", "many")
    )
    assert "no preset 'tinyy'" in complaint(capsys, *fit(tmp_path, "--model.encoder.image", "mofi/tinyy"))
    assert "nope.yaml" in complaint(capsys, "fit", "--config", "nope.yaml")
    ddp = complaint(capsys, *fit(tmp_path, "--trainer.strategy", "ddp", "--trainer.devices", "2"))
    assert "DDPStrategy" in ddp and "ShardedStrategy" in ddp


def test_missing_and_empty_data_end_with_one_line(capsys, tmp_path):
    data = f"{{i2e: {{path: {tmp_path}/nowhere, rows: 8}}}}"
    words = ["fit", "--trainer.max_steps", "1", "--trainer.default_root_dir", str(tmp_path / "run")]
    text = ["--model.encoder.text", "{width: 32, layers: 1, heads: 2}"]
    assert "nowhere" in complaint(capsys, *words, *text, "--data", "I2EDataModule", "--data.sources", data)
    empty = tmp_path / "empty.parquet"
    columns = pa.schema([("key", pa.string()), ("image", pa.binary()), ("text", pa.string())])
    pq.write_table(columns.empty_table(), empty)
    assert "empty.parquet" in complaint(capsys, "data", "build", str(empty), str(tmp_path / "out"))
    assert "empty.parquet" in complaint(capsys, "curate", str(empty), str(tmp_path / "out"))


def test_what_is_no_checkpoint_ends_with_one_line(capsys, tmp_path):
    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"not a checkpoint")
    assert "garbage.ckpt" in complaint(capsys, *fit(tmp_path, "--ckpt_path", str(garbage)))
    assert "does not exist" in complaint(capsys, *fit(tmp_path, "--ckpt_path", str(tmp_path / "no.ckpt")))
    assert ".metadata" in complaint(capsys, *fit(tmp_path, "--ckpt_path", str(tmp_path)))


def test_settings_that_would_train_something_wrong_are_refused(capsys, tmp_path):
    assert "accumulate_grad_batches" in complaint(
        capsys, *fit(tmp_path, "--trainer.accumulate_grad_batches", "2")
    )
    assert "bf16-true" in complaint(capsys, *fit(tmp_path, "--trainer.precision", "bf16-true"))
    missing = complaint(capsys, *fit(tmp_path, "--model.encoder.text", "null"))
    assert "'text'" in missing and "model.encoder.text" in missing


def test_an_objective_whose_field_no_source_carries_is_refused(capsys, tmp_path, emoji_slice):
    build_dataset(emoji_slice / "train.parquet", tmp_path / "pairs")
    sources = f"{{photos: {{path: {tmp_path}/pairs, rows: 8}}}}"
    line = complaint(
        capsys,
        *("fit", "--trainer.max_steps", "1", "--trainer.default_root_dir", str(tmp_path / "run")),
        *("--model.objective", "EntitySoftmax", "--data", "I2EDataModule", "--data.sources", sources),
    )
    assert "EntitySoftmax" in line and ("photos: image, text" in line or "entities" in line)


def test_corrupt_images_are_replaced_counted_and_reported(tmp_path, capsys, emoji_slice):
    rows = pq.read_table(emoji_slice / "train.parquet").to_pylist()
    for row in rows[:3]:
        row["image"] = row["image"][: len(row["image"]) // 2]
    rows[3]["image"] = b""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    build_dataset(tmp_path / "pairs.parquet", tmp_path / "data")
    sources = f"{{pairs: {{path: {tmp_path}/data, rows: 34}}}}"
    cli.main(
        [
            *("fit", "--trainer.max_steps", "6", "--trainer.default_root_dir", str(tmp_path / "run")),
            *("--trainer.accelerator", "cpu", "--model.encoder.text", "{width: 32, layers: 1, heads: 2}"),
            *("--data", "I2EDataModule", "--data.sources", sources, "--data.num_workers", "1"),
        ]
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert sum(summary["bad_rows"].values()) >= 4, summary


def test_short_overrides_reach_nested_objectives(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(fit(tmp_path, "--model.objective.entity.margin", "0.2", "--print_config"))
    assert not end.value.code
    assert "margin: 0.2" in capsys.readouterr().out
