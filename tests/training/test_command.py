"""`mofi fit` and `mofi validate` on the command line."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from tests.test_cli import complaint

from mofi_lightning import Batch, Embeddings, InputError, Objective, ObjectiveOutput, ObjectiveSpec, cli, load
from mofi_lightning.data.build import build_dataset
from mofi_lightning.data.datamodule import DataSource, I2EDataModule
from mofi_lightning.training import PretrainingModule, ShardedStrategy
from mofi_lightning.training.command import build

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
    assert "'ddp'" in ddp and "--trainer.strategy.replicate" in ddp


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
    malicious = tmp_path / "malicious.ckpt"
    malicious.mkdir()
    (malicious / ".metadata").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    torch.save({"dual_encoder": {"config": {}}}, malicious / "meta.pt")
    assert "safely" in complaint(capsys, *fit(tmp_path, "--ckpt_path", str(malicious)))
    assert not (tmp_path / "ran").exists()
    assert ".metadata" in complaint(capsys, *fit(tmp_path, "--ckpt_path", str(tmp_path)))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_settings_that_would_train_something_wrong_are_refused(capsys, tmp_path):
    assert "accumulate_grad_batches" in complaint(
        capsys, *fit(tmp_path, "--trainer.accumulate_grad_batches", "2")
    )
    assert "bf16-true" in complaint(capsys, *fit(tmp_path, "--trainer.precision", "bf16-true"))
    missing = complaint(capsys, *fit(tmp_path, "--model.encoder.text", "null"))
    assert "'text'" in missing and "model.encoder.text" in missing


def test_a_finished_run_without_its_model_exports_it_when_it_is_resumed(tmp_path):
    checkpointing = "[{class_path: StepCheckpoint, init_args: {every_n_steps: 2}}]"
    words = fit(tmp_path, "--trainer.max_steps", "4", "--trainer.callbacks", checkpointing)
    cli.main(words)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=00000004.ckpt"]
    shutil.rmtree(tmp_path / "model")
    cli.main([*words, "--ckpt_path", "last"])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


def test_a_run_does_not_start_anew_among_the_checkpoints_of_another(tmp_path, capsys):
    checkpointing = "[{class_path: StepCheckpoint, init_args: {every_n_steps: 2}}]"
    words = fit(tmp_path, "--trainer.max_steps", "2", "--trainer.callbacks", checkpointing)
    cli.main(words)
    capsys.readouterr()
    line = complaint(capsys, *words)
    assert "step=00000002.ckpt" in line and "--ckpt_path last" in line


def test_a_checkpoint_of_one_process_is_not_resumed_by_two(tmp_path, capsys):
    checkpointing = "[{class_path: StepCheckpoint, init_args: {every_n_steps: 2}}]"
    words = fit(tmp_path, "--trainer.max_steps", "2", "--trainer.callbacks", checkpointing)
    cli.main(words)
    capsys.readouterr()
    assert "one process" in complaint(capsys, *words, "--ckpt_path", "last", "--trainer.devices", "2")


@pytest.mark.parametrize(
    "words",
    [
        ["--trainer.strategy.replicate", "2"],
        ["--trainer.strategy", "ShardedStrategy", "--trainer.strategy.replicate", "2"],
        ["--trainer.strategy", "ShardedStrategy"],
        ["--trainer.strategy", "auto"],
        [],
    ],
)
def test_the_sharded_strategy_can_be_set(tmp_path, words):
    full = [*SYNTHETIC, "--trainer.devices", "2", "--trainer.default_root_dir", str(tmp_path), *words]
    trainer = build(full, run=False).trainer
    strategy = trainer.strategy
    assert trainer.num_devices == 2
    assert isinstance(strategy, ShardedStrategy)
    assert strategy.replicate == (2 if "2" in words else 1)
    single = build([*full, "--trainer.devices", "1"], run=False).trainer.strategy
    assert isinstance(single, SingleDeviceStrategy)


def test_what_libraries_say_of_settings_is_one_line_too(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PAIRS", raising=False)
    assert "PAIRS" in complaint(capsys, "fit", "--config", "configs/quickstart/common.yaml")
    if not torch.cuda.is_available():
        assert "gpu" in complaint(capsys, *fit(tmp_path, "--trainer.accelerator", "gpu"))


class NeedsEntities(Objective):
    """Asks for a field in its contract only."""

    requires = frozenset({"entity"})

    def __init__(self, spec: ObjectiveSpec) -> None:
        super().__init__()

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        return ObjectiveOutput(embeddings.image.sum(), {})


def test_an_objective_whose_field_no_source_carries_is_refused(tmp_path, emoji_slice):
    build_dataset(emoji_slice / "train.parquet", tmp_path / "pairs")
    data = I2EDataModule({"photos": DataSource(str(tmp_path / "pairs"), 8)})
    trainer = Trainer(accelerator="cpu", max_steps=1, max_epochs=-1, logger=False, enable_checkpointing=False)
    with pytest.raises(
        InputError, match=r"'NeedsEntities' needs 'entity', which no source carries \(photos: image, text\)"
    ):
        trainer.fit(PretrainingModule(objective=NeedsEntities), datamodule=data)


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
