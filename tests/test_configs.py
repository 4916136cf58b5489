"""Every YAML of configs/ is parsed and instantiated; those of evaluation are run."""

import inspect
import json
from pathlib import Path

import jsonargparse
import pytest
import torch
import yaml
from tests.evaluation.datasets.miniatures import Miniatures

from mofi_lightning.cli import main
from mofi_lightning.curation.pipeline import curate
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.encoders.text import TextConfig
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.evaluation import evaluators
from mofi_lightning.objectives import Objective
from mofi_lightning.objectives.devise import DeViSE
from mofi_lightning.testing import synthetic_vocabulary
from mofi_lightning.training import ShardedStrategy
from mofi_lightning.training.command import build
from mofi_lightning.types import ObjectiveSpec

CONFIGS = Path(__file__).parents[1] / "configs"
FIT = sorted(CONFIGS.glob("fit/*.yaml"))
STRATEGY = sorted(CONFIGS.glob("strategy/*.yaml"))
QUICKSTART = sorted(set(CONFIGS.glob("quickstart/*.yaml")) - {CONFIGS / "quickstart" / "common.yaml"})
VERBS = {"curation": curate}
SUITES = sorted(CONFIGS.glob("evaluation/*.yaml"))


def test_every_yaml_is_covered_here():
    covered = {*FIT, *STRATEGY, *QUICKSTART, *SUITES, CONFIGS / "quickstart" / "common.yaml"}
    covered |= {path for folder in VERBS for path in CONFIGS.glob(f"{folder}/*.yaml")}
    assert covered == set(CONFIGS.rglob("*.yaml")) and FIT and QUICKSTART and SUITES


@pytest.mark.parametrize("config", [*FIT, *QUICKSTART], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_training_configurations_build_trainer_model_objective_and_data(
    config, tmp_path, monkeypatch, emoji_slice
):
    monkeypatch.setenv("QUICKSTART", str(tmp_path))
    monkeypatch.setenv("PAIRS", str(emoji_slice))
    common = ["--config", str(CONFIGS / "quickstart" / "common.yaml")] if config in QUICKSTART else []
    words = [
        *common,
        "--config",
        str(config),
        "--trainer.default_root_dir",
        str(tmp_path),
        "--trainer.logger",
        "false",
    ]
    cli = build(words, run=False)
    assert cli.trainer.max_steps > 0
    encoder = cli.model.encoder_config
    # large models are built without memory; tokenizers that a run of the quickstart would train are missing
    plain = {"bytes": encoder.tokenizer, "clip": encoder.tokenizer}.get(encoder.tokenizer, "bytes")
    with torch.device("meta"):
        model = DualEncoder.from_config(type(encoder)(**{**vars(encoder), "tokenizer": plain}))
    spec = ObjectiveSpec(model.embed_dim, model.feature_dim, synthetic_vocabulary(10))
    try:
        objective = cli.model.make_objective(spec)
    except ValueError as error:  # DeViSE's vectors are made by the run
        assert "vectors" in str(error) and "devise" in config.stem
        objective = DeViSE.__new__(DeViSE)
    assert isinstance(objective, Objective)
    if "text" in objective.requires:
        assert model.text is not None


@pytest.mark.parametrize("config", STRATEGY, ids=lambda path: path.stem)
def test_a_strategy_goes_with_a_training_configuration_and_says_how_many_copies_there_are(config, tmp_path):
    words = ["--config", str(CONFIGS / "fit" / "synthetic.yaml"), "--config", str(config)]
    words += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.logger", "false"]
    if config.stem == "single":
        trainer = build(words, run=False).trainer
        assert trainer.world_size == 1 and not isinstance(trainer.strategy, ShardedStrategy)
        return
    strategy = build([*words, "--trainer.devices", "2"], run=False).trainer.strategy
    assert isinstance(strategy, ShardedStrategy)
    assert strategy.replicate == {"sharded": 1, "replicated": "world", "hybrid": "nodes"}[config.stem]
    alone = build(words, run=False).trainer  # without GPUs, 'auto' is one process
    assert alone.world_size == 1 and not isinstance(alone.strategy, ShardedStrategy)


@pytest.mark.parametrize("config", FIT, ids=lambda path: path.stem)
def test_training_configurations_validate_on_held_out_rows(config):
    data = yaml.safe_load(config.read_text())["data"]
    assert data["class_path"] != "I2EDataModule" or data["init_args"]["validation"] == "data/validation"


@pytest.mark.parametrize("folder", VERBS)
def test_configurations_of_verbs_are_valid(folder):
    for path in CONFIGS.glob(f"{folder}/*.yaml"):
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_function_arguments(VERBS[folder])
        given = yaml.safe_load(path.read_text())
        parser.instantiate_classes(parser.parse_object({**placeholders(VERBS[folder]), **given}))


def placeholders(verb) -> dict[str, object]:
    """Values for the parameters that a configuration leaves to the command line."""
    required = [p.name for p in inspect.signature(verb).parameters.values() if p.default is p.empty]
    return {name: "x" for name in required}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model with a text tower."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a picture of a whale", "boar"] * 20, 300)
    folder = tmp_path_factory.mktemp("models") / "clip"
    DualEncoder.from_config(DualEncoderConfig(text=TextConfig()), tokenizer).save(folder)
    return folder


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_suites_measure_all_that_they_name(suite, model, tmp_path, monkeypatch, emoji_slice):
    monkeypatch.chdir(tmp_path)
    given = yaml.safe_load(suite.read_text())
    miniatures = Miniatures(emoji_slice)
    for task in given["tasks"].values():
        miniatures.write(task["data"]["class_path"], **task["data"]["init_args"])
    # VTAB's 19 data sets are all of one form: one model will do
    models = {"clip": f"clip={model}"} | ({"pixels": "pixels"} if len(given["tasks"]) < 10 else {})
    main(["evaluate", "--model", *models.values(), "--suite", str(suite), "--output", "out"])
    results = tmp_path / "out" / "results"
    for name, task in given["tasks"].items():
        for evaluator in task["evaluators"]:
            kind = getattr(evaluators, evaluator["class_path"])
            for side in models:
                found = json.loads((results / side / name / f"{kind.task}.json").read_text())
                # what has no text tower is measured by what needs none
                is_skipped = side == "pixels" and kind.task.startswith("zeroshot")
                assert bool(found["skipped"]) == is_skipped
                assert is_skipped or 0 <= found["metrics"][kind.measures[0]] <= 1
    if len(given["tasks"]) > 1:
        assert "mean of the data sets" in (tmp_path / "out" / "table.md").read_text()
