"""`mofi fit` and `mofi validate` on the command line."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
from inspect import signature
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from tests.test_cli import complaint
from tests.training.runs import module

from mofi_lightning import Batch, Embeddings, InputError, Objective, ObjectiveOutput, ObjectiveSpec, cli, load
from mofi_lightning.data.build import build_dataset
from mofi_lightning.data.datamodule import DataSource, I2EDataModule
from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.encoders.preprocess import Preprocess
from mofi_lightning.sources.parquet import ParquetSource
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import PretrainingModule, ShardedStrategy
from mofi_lightning.training.command import PretrainingCLI, build
from mofi_lightning.training.monitoring.callbacks import StepProgressBar

SYNTHETIC = ["--config", "configs/fit/synthetic.yaml", "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, tmp_path):
    """Configurations are named as in the README, runs go to the test's folder."""
    monkeypatch.chdir(Path(__file__).parents[2])


def fit(root, *words: str) -> list[str]:
    return ["fit", *SYNTHETIC, "--trainer.default_root_dir", str(root), *words]


def validate(root, *words: str) -> list[str]:
    return ["validate", *SYNTHETIC, "--trainer.default_root_dir", str(root), *words]


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
    cli.main(fit(tmp_path, "--trainer.max_steps", "2"))
    cli.main(validate(tmp_path, "--ckpt_path", "last"))
    out = capsys.readouterr().out
    assert f"validating {tmp_path}/checkpoints/step=00000002.ckpt" in out and "val/loss" in out


def test_validation_of_untrained_weights_is_refused(tmp_path, capsys):
    assert "--ckpt_path last" in complaint(capsys, *validate(tmp_path))
    nothing = complaint(capsys, *validate(tmp_path, "--ckpt_path", "last"))
    assert f"no checkpoint in {tmp_path}/checkpoints" in nothing


def test_a_folder_that_is_no_checkpoint_is_told_what_it_is(tmp_path, capsys):
    cli.main(fit(tmp_path, "--trainer.max_steps", "1"))
    capsys.readouterr()
    run = complaint(capsys, *validate(tmp_path, "--ckpt_path", str(tmp_path)))
    assert "folder of a run" in run and f"{tmp_path}/checkpoints/step=00000001.ckpt" in run
    assert "is a model" in complaint(capsys, *validate(tmp_path, "--ckpt_path", str(tmp_path / "model")))


def test_validation_without_held_out_rows_is_refused(tmp_path, capsys, emoji_slice):
    build_dataset(ParquetSource(emoji_slice / "validation.parquet"), tmp_path / "data")
    words = [
        *("--trainer.max_steps", "1", "--trainer.default_root_dir", str(tmp_path / "run")),
        *("--trainer.accelerator", "cpu", "--model.encoder.text", "{width: 32, layers: 1, heads: 2}"),
        *("--data", "I2EDataModule", "--data.sources", f"{{pairs: {{path: {tmp_path}/data, rows: 8}}}}"),
    ]
    cli.main(["fit", *words])
    capsys.readouterr()
    assert "data.validation" in complaint(capsys, "validate", *words, "--ckpt_path", "last")


def test_wrong_options_end_with_one_line(capsys, tmp_path):
    yaml = tmp_path / "wrong.yaml"
    yaml.write_text("trainer: {max_stepps: 5}\n")
    assert "max_stepps" in complaint(capsys, *fit(tmp_path, "--config", str(yaml)))
    misspelt = complaint(capsys, *fit(tmp_path, "--model.objective", "EntitySoftmaxx"))
    assert "model.objective: there is no class 'EntitySoftmaxx' (did you mean 'EntitySoftmax'?)" in misspelt
    plugin = complaint(capsys, *fit(tmp_path, "--model.objective", "knn"))
    assert "the plugin of that name is 'mofi_lightning.plugins.knn'" in plugin
    required = complaint(capsys, *fit(tmp_path, "--model.objective", "DeViSE"))
    assert required.startswith("mofi: error: model.objective: label_vectors must be set")
    assert "data must be set" in complaint(capsys, "fit", "--trainer.max_steps", "1")
    path = complaint(capsys, *fit(tmp_path, "--model.objective", "mofi_lightning.objectives.Mofi"))
    assert "module 'mofi_lightning.objectives' has no 'Mofi' (did you mean 'MOFI'?)" in path
    assert "did you mean 'I2EDataModule'?" in complaint(capsys, *fit(tmp_path, "--data", "I2EDatamodule"))
    missing = complaint(capsys, *fit(tmp_path, "--model.objective", "my_package.Cosine"))
    assert "module 'my_package' cannot be imported" in missing and "--module my_package" in missing
    assert "'torch.nn.Linear' is no Objective" in complaint(
        capsys, *fit(tmp_path, "--model.objective", "torch.nn.Linear")
    )
    assert "unrecognized arguments: --trainer.max_step 1" in complaint(
        capsys, *fit(tmp_path, "--trainer.max_step", "1")
    )
    unknown = complaint(capsys, *fit(tmp_path, "--model.objective.entity.marginn", "2"))
    assert "model.objective.entity: option 'marginn' is not accepted" in unknown
    assert "data.rows: expected int, got many" in complaint(
        capsys, *fit(tmp_path, "--data.init_args.rows", "many")
    )
    assert "no preset 'tinyy'" in complaint(capsys, *fit(tmp_path, "--model.encoder.image", "mofi/tinyy"))
    assert "nope.yaml" in complaint(capsys, "fit", "--config", "nope.yaml")
    yaml.write_text("model: {encodr: {}, encoder: {}, optimization: {}}\n")  # the parser drops what is empty
    assert "'model.encodr' is not accepted" in complaint(capsys, *fit(tmp_path, "--config", str(yaml)))
    ddp = complaint(capsys, *fit(tmp_path, "--trainer.strategy", "ddp", "--trainer.devices", "2"))
    assert "'ddp'" in ddp and "--trainer.strategy.replicate" in ddp


def test_the_short_help_names_options_that_exist(capsys):
    cli.main(["fit", "--help"])
    named = re.findall(r"^  (--[\w.]+)", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--help", "all"])
    assert not end.value.code
    known = set(re.findall(r"(?<![\w-])--[\w.]+", capsys.readouterr().out))
    of_classes = {"--data": I2EDataModule, "--model.encoder.preprocess": Preprocess}
    for option in named:
        prefix = next((p for p in of_classes if option.startswith(f"{p}.")), None)
        if option not in known | {"--help"}:
            assert prefix and option.rpartition(".")[2] in signature(of_classes[prefix]).parameters, option


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


def test_a_finished_run_without_its_model_exports_it_when_it_is_resumed(tmp_path, capsys):
    words = fit(tmp_path, "--trainer.max_steps", "4")
    cli.main(words)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "model")
    cli.main([*words, "--ckpt_path", "last"])
    assert "only the model is written" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


def test_a_finished_run_goes_on_with_more_steps_as_if_it_had_had_them(tmp_path, capsys):
    # the learning rate of the first 100 steps does not depend on the number of steps
    cli.main(fit(tmp_path / "whole", "--trainer.max_steps", "4"))
    capsys.readouterr()
    quiet = ["--trainer.enable_progress_bar", "false", "--ckpt_path", "last"]
    cli.main(fit(tmp_path / "cut", "--trainer.max_steps", "2", *quiet))
    model = tmp_path / "cut" / "model"
    assert capsys.readouterr().out.splitlines() == [
        "no checkpoint yet: training starts at step 0",
        "training mofi/tiny and a text tower with MOFI: 0.58 M parameters, 1 process, 32-true, "
        f"AdamW (lr 0.001), to step 2 in {tmp_path}/cut",
        f"model -> {model}",
    ]
    cli.main(fit(tmp_path / "cut", "--trainer.max_steps", "4", *quiet))
    assert f"resuming from {tmp_path}/cut/checkpoints/step=00000002.ckpt" in capsys.readouterr().out
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]

    with pytest.raises(SystemExit) as end:  # nothing is built, nothing is written
        cli.main(fit(tmp_path / "cut", "--trainer.max_steps", "4", *quiet, "--data.rows", "7"))
    assert not end.value.code
    assert capsys.readouterr().out == (
        "already at step 4 of max_steps 4: nothing to train; raise trainer.max_steps to go on\n"
    )


def test_a_model_older_than_the_last_checkpoint_is_written_anew(tmp_path, capsys):
    words = fit(tmp_path, "--trainer.max_steps", "2", "--ckpt_path", "last")
    cli.main(words)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    os.utime(tmp_path / "model" / "config.json", ns=(0, checkpoint.stat().st_mtime_ns - 1))
    cli.main(words)
    assert "only the model is written" in capsys.readouterr().out


def test_a_run_does_not_start_anew_in_the_folder_of_another(tmp_path, capsys, monkeypatch):
    words = fit(tmp_path, "--trainer.max_steps", "2")
    cli.main(words)
    capsys.readouterr()
    monkeypatch.setattr(PretrainingCLI, "instantiate_classes", None)  # refused before anything is built
    line = complaint(capsys, *words)
    assert "step=00000002.ckpt" in line and "--ckpt_path last" in line
    shutil.rmtree(tmp_path / "checkpoints")
    for more in ([], ["--ckpt_path", "last"]):
        assert f"{tmp_path}/model is of an earlier run" in complaint(capsys, *words, *more)


def test_a_requeued_job_goes_on_with_its_own_run_and_not_with_what_it_was_started_from(
    tmp_path, capsys, monkeypatch
):
    cli.main(fit(tmp_path / "first", "--trainer.max_steps", "2"))
    start = ["--ckpt_path", str(tmp_path / "first/checkpoints/step=00000002.ckpt")]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for steps, begun in (("3", "first/checkpoints/step=00000002"), ("4", "own/checkpoints/step=00000003")):
        capsys.readouterr()
        cli.main(fit(tmp_path / "own", "--trainer.max_steps", steps, *start))
        assert f"resuming from {tmp_path}/{begun}.ckpt" in capsys.readouterr().out


def test_a_run_that_its_time_ends_is_saved_and_says_how_to_go_on(tmp_path, capsys):
    stop = "{class_path: tests.training.resuming.StopAt, init_args: {step: 2}}"
    cli.main(fit(tmp_path, "--trainer.max_steps", "4", "--trainer.callbacks+", stop))
    path = tmp_path / "checkpoints" / "step=00000002.ckpt"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"stopped at step 2 of 4; saved {path}; no model is written; go on with --ckpt_path last"
    )
    assert path.is_dir() and not (tmp_path / "model").exists()


def test_an_older_checkpoint_of_the_same_folder_is_not_gone_back_to(tmp_path, capsys, monkeypatch):
    saving = "{class_path: StepCheckpoint, init_args: {every_n_steps: 1, keep_last: 2}}"
    cli.main(fit(tmp_path, "--trainer.max_steps", "2", "--trainer.callbacks+", saving))
    monkeypatch.setattr(PretrainingCLI, "instantiate_classes", None)  # refused before anything is built
    folder = tmp_path / "checkpoints"
    words = fit(tmp_path, "--ckpt_path", str(folder / "step=00000001.ckpt"))
    capsys.readouterr()
    line = complaint(capsys, *words)
    assert f"{folder}/step=00000002.ckpt is of a later step than 1" in line and "default_root_dir" in line
    shutil.rmtree(folder / "step=00000002.ckpt")
    (folder / "best").mkdir()
    (folder / "best" / "score.json").write_text('{"step": 2}')
    assert f"{folder}/best is of a later step than 1" in complaint(capsys, *words)


def test_the_folder_of_the_best_checkpoint_stands_for_it(tmp_path, capsys):
    cli.main(fit(tmp_path, "--trainer.max_steps", "1"))
    best = tmp_path / "checkpoints" / "best"
    shutil.copytree(tmp_path / "checkpoints/step=00000001.ckpt", best / "step=00000001.ckpt")
    (best / "score.json").write_text('{"step": 1}')
    cli.main(validate(tmp_path, "--ckpt_path", str(best)))
    assert f"validating {best}/step=00000001.ckpt" in capsys.readouterr().out
    cli.main(["checkpoint", "inspect", str(best)])
    assert "step=00000001.ckpt, complete" in capsys.readouterr().out
    weights = load(best).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in load(tmp_path).state_dict().items())


def test_checkpoints_of_lightnings_own_callback_are_refused(tmp_path, capsys):
    words = ["--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint"]
    line = complaint(capsys, *fit(tmp_path, "--trainer.max_steps", "1", *words))
    assert "use StepCheckpoint (every_n_steps, keep_last, monitor)" in line


def test_nothing_is_said_of_settings_of_lightnings_that_nobody_made(tmp_path, caplog, capsys):
    cli.main(fit(tmp_path, "--trainer.max_steps", "1"))
    said = capsys.readouterr()
    assert "weights_only" not in said.out + said.err + caplog.text


def test_a_module_is_not_given_data_of_other_entities(tmp_path):
    def run(steps: int) -> Trainer:
        return Trainer(
            accelerator="cpu",
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )

    trained = module()
    run(1).fit(trained, datamodule=SyntheticDataModule(rows=8, num_entities=101))
    other = SyntheticDataModule(rows=8, num_entities=99)
    with pytest.raises(InputError, match=r"built for 101 entities .*, the data set has 99 "):
        run(1).validate(trained, datamodule=other)
    same = SyntheticDataModule(rows=8, num_entities=101)
    run(1).validate(trained, datamodule=same, verbose=False)
    assert same._tokenizer is trained.model.tokenizer


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


def test_a_refused_run_leaves_no_log_behind(tmp_path, capsys):
    cli.main(fit(tmp_path, "--trainer.max_steps", "2"))
    words = fit(tmp_path, "--trainer.max_steps", "4", "--ckpt_path", "last")
    capsys.readouterr()
    assert "entities" in complaint(capsys, *words, "--data.num_entities", "99")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["version_0"]
    cli.main(words)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"version_0", "version_1"}


@pytest.mark.parametrize("name", ["simple", "pytorch"])
def test_a_profiler_named_on_the_command_line_writes_into_the_run(tmp_path, name):
    cli.main(fit(tmp_path, "--trainer.max_steps", "6", "--trainer.profiler", name))
    report = (tmp_path / "fit-profile.txt").read_text()
    assert ("optimizer_step" if name == "simple" else "Self CPU") in report
    traces = list(tmp_path.glob("fit-profile*.pt.trace.json"))
    assert len(traces) == (name == "pytorch")
    for trace in traces:
        events = json.loads(trace.read_text())["traceEvents"]
        assert sum(event["name"] == "ViewBackward0" for event in events) >= 3


def test_an_unknown_profiler_is_refused(tmp_path, capsys):
    assert "simple, advanced, pytorch" in complaint(capsys, *fit(tmp_path, "--trainer.profiler", "nsys"))


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
    build_dataset(ParquetSource(emoji_slice / "train.parquet"), tmp_path / "pairs")
    data = I2EDataModule({"photos": DataSource(str(tmp_path / "pairs"), 8)})
    trainer = Trainer(accelerator="cpu", max_steps=1, max_epochs=-1, logger=False, enable_checkpointing=False)
    with pytest.raises(
        InputError, match=r"'NeedsEntities' needs 'entity', which no source carries \(photos: image, text\)"
    ):
        trainer.fit(PretrainingModule(objective=NeedsEntities), datamodule=data)


def test_corrupt_images_are_replaced_counted_and_reported(tmp_path, capsys, emoji_slice, recwarn):
    rows = pq.read_table(emoji_slice / "train.parquet").to_pylist()
    for row in rows[:3]:
        row["image"] = row["image"][: len(row["image"]) // 2]
    rows[3]["image"] = b""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    write_dataset(PairsReader(tmp_path / "pairs.parquet"), tmp_path / "data")
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
    assert not [str(w.message) for w in recwarn if "lightning" in w.filename or "torch" in w.filename]


def test_loggers_and_loaders_fit_the_run_and_the_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    data = ["--data", "I2EDataModule", "--data.sources", "{a: {path: x, rows: 8}}", "--data.num_workers"]
    words = ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path), *data]
    short = build([*words, "8", "--trainer.max_steps", "7"], run=False)
    assert short.trainer.log_every_n_steps == 7 and short.datamodule.num_workers == 3
    assert "data.num_workers: 3 instead of 8, for 3 cores" in capsys.readouterr().out
    two = build([*words, "8", "--trainer.max_steps", "700", "--trainer.devices", "2"], run=False)
    assert two.trainer.log_every_n_steps == 50 and two.datamodule.num_workers == 1
    capsys.readouterr()
    assert build([*words, "3"], run=False).datamodule.num_workers == 3
    assert "num_workers" not in capsys.readouterr().out


def test_the_progress_bar_shows_what_is_logged_and_nothing_else(tmp_path):
    bars = []

    class Bar(StepProgressBar):
        def on_train_end(self, trainer, pl_module):
            bars.append(set(self.get_metrics(trainer, pl_module)))
            super().on_train_end(trainer, pl_module)

    run = Trainer(
        accelerator="cpu",
        max_steps=1,
        max_epochs=-1,
        logger=CSVLogger(tmp_path),
        callbacks=[Bar()],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    run.fit(module(), datamodule=SyntheticDataModule(rows=8, num_entities=101))
    assert bars == [{"train/loss"}]


def test_short_overrides_reach_nested_objectives(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(fit(tmp_path, "--model.objective.entity.margin", "0.2", "--print_config"))
    assert not end.value.code
    assert "margin: 0.2" in capsys.readouterr().out
