"""The evaluators during training: their numbers, their moments, and what they leave alone."""

import csv
import functools
import json
import logging
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tests.training.runs import ENCODER, trainer, whole

from mofi_lightning import load
from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.evaluation.base import EvaluationData, Evaluator, Measurement
from mofi_lightning.evaluation.datasets import PairsFile
from mofi_lightning.evaluation.datasets.evaluation_set import ImageFiles
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators import KNN, ImageText, Retrieval, ZeroShot
from mofi_lightning.objectives import MOFI, EntitySoftmax
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Evaluation, Optimization, PretrainingModule, StepCheckpoint
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.training.command import build
from mofi_lightning.training.monitoring.embedding import ShardedEmbedder, TrainedModel
from mofi_lightning.training.monitoring.run_summary import RunSummary
from mofi_lightning.types import InputError

_SLOW = [pytest.mark.slow, pytest.mark.timeout(300)]
SLICE = Path(__file__).parents[2] / "data" / "emoji_slice"


class Emoji(EvaluationData):
    """A number of images that few numbers of ranks divide; some cannot be decoded.

    Args:
        images: how many.
        broken: rows of those that cannot be decoded.
    """

    def __init__(self, images: int = 53, broken: tuple[int, ...] = ()) -> None:
        self.images = images
        self.broken = broken

    def open(self):
        data = PairsFile(SLICE / "test.parquet").open()
        images = [b"no image" if row in self.broken else data.images[row] for row in range(self.images)]
        return replace(
            data, keys=data.keys[: self.images], images=images, entities=data.entities[: self.images]
        )


class Keep(Evaluator):
    """Keeps the embeddings of every evaluation."""

    task, measures = "kept", ("images",)

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def __call__(self, embedder, data):
        self.kept.append(embedder.labelled(data).embeddings)
        return Measurement(values={"images": float(len(self.kept[-1]))})


class Scripted(Evaluator):
    """Gives a list of values one after the other; the text 'fail' is an error."""

    task, measures = "scripted", ("score",)

    def __init__(self, *values: float | str) -> None:
        self.values = list(values)

    def __call__(self, embedder, data):
        embedder.images(data)
        value = self.values.pop(0)
        if value == "fail":
            raise InputError("the model is broken")
        return Measurement(values={"score": float(value)})


class Drawing(Evaluator):
    """Draws random numbers, and trains something."""

    task, measures = "drawing", ("drawn",)

    def __call__(self, embedder, data):
        weight = torch.zeros(3, requires_grad=True)
        (weight * embedder.labelled(data).features[:1, :3]).sum().backward()
        assert weight.grad is not None
        drawn = torch.rand(()).item() + random.random() + np.random.rand()
        return Measurement(values={"drawn": drawn})


def module(ema_decay=None):
    objective = functools.partial(MOFI, entity=functools.partial(EntitySoftmax, num_sampled=40))
    return PretrainingModule(ENCODER, objective, Optimization(lr=1e-2, warmup_steps=1), ema_decay=ema_decay)


def fit(root, steps, *callbacks, model=None, resume=None, **options):
    seed_everything(3, verbose=False)
    model = module() if model is None else model
    options = {"enable_checkpointing": any(isinstance(c, StepCheckpoint) for c in callbacks), **options}
    run = trainer(Path(root), steps, callbacks=list(callbacks), **options)
    data = SyntheticDataModule(rows=12, num_entities=101)
    run.fit(model, datamodule=data, ckpt_path=resume and str(resume), weights_only=True)
    return run, model


def logged(root, name):
    """Step and value of every time that something was logged."""
    found = []
    for path in sorted(Path(root).glob("logs/version_*/metrics.csv")):
        with path.open() as file:
            found += [
                (int(row["step"]) + 1, pytest.approx(float(row[name]), abs=1e-6))
                for row in csv.DictReader(file)
                if row.get(name)
            ]
    return found


def found_in_run(root, dtype, batch_size, replicate=1):
    """Numbers of the last of two evaluations of the average, what callbacks see, and all embeddings."""
    torch.set_default_dtype(dtype)
    try:
        keep = Keep()
        evaluators = [Retrieval(), KNN(k=(1, 5)), ZeroShot(), ImageText(), keep]
        data = Emoji(broken=(3, 52))
        evaluation = Evaluation(data, "gpr", evaluators, every_n_steps=2, batch_size=batch_size)
        run, model = fit(root, 4, evaluation, model=module(0.9), replicate=replicate)
        return evaluation.found, dict(run.callback_metrics), keep.kept, model.model.training
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("ranks", "replicate", "batch_size"), [(2, 1, 8), (2, 2, 8), pytest.param(3, 1, 64, marks=_SLOW)]
)
def test_ranks_measure_together_what_one_measures(pool, tmp_path, ranks, replicate, batch_size):
    ((expected, _, kept, _),) = pool(1, found_in_run, str(tmp_path / "one"), torch.float64, batch_size)
    assert {"gpr/map", "gpr/knn_acc1", "gpr/acc1", "gpr/image_retrieval_recall@1"} <= expected.keys()
    assert expected["gpr/images"] == 51
    many = pool(ranks, found_in_run, str(tmp_path / "many"), torch.float64, batch_size, replicate)
    for found, metrics, embeddings, training in many:
        assert found.keys() == expected.keys() and training
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name
            assert math.isnan(value) or metrics[name].item() == pytest.approx(value, abs=1e-6), name
        for one, other in zip(kept, embeddings, strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_the_embedder_gives_what_evaluate_gives_in_passes_of_any_size():
    torch.manual_seed(0)
    model = DualEncoder.from_config(ENCODER).eval()
    data = Emoji(broken=(0, 1, 2, 52)).open()
    expected = Embedder(model).images(data)
    trained = TrainedModel(model, None, torch.device("cpu"), torch.no_grad)
    for batch_size in (3, 53, 256):  # the first pass of three has no image at all
        found = ShardedEmbedder(trained, batch_size).images(data)
        assert found.failed == expected.failed and set(found.failed) == {0, 1, 2, 52}
        for one, other in ((found.embeddings, expected.embeddings), (found.features, expected.features)):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6, equal_nan=True)
    texts = [f"text {number}" for number in range(7)]
    torch.testing.assert_close(
        ShardedEmbedder(trained, 3).texts(texts), Embedder(model).texts(texts), rtol=0, atol=1e-6
    )
    with pytest.raises(InputError, match="none of 2 images could be embedded: no JPEG"):
        ShardedEmbedder(trained).images(Emoji(2, broken=(0, 1)).open())


class Failing:
    """Fails on one image, which it knows by its height."""

    def __call__(self, image):
        if image.shape[1] == 9:
            raise ValueError("nine rows")
        return torch.zeros(3, 224, 224)


def embedded_on_ranks(folder, replaced):
    """What the embedder gives, or raises, where the file of row 5, of the second rank, is gone or odd."""
    torch.manual_seed(0)
    model = DualEncoder.from_config(ENCODER).eval()
    if replaced:
        model.preprocess = Failing()
    trained = TrainedModel(model, None, torch.device("cpu"), torch.no_grad)
    files = ImageFiles([Path(folder) / f"{row}.png" for row in range(6)])
    try:
        return ShardedEmbedder(trained, 2).embed_images(files).failed
    except InputError as error:
        return str(error)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("replaced", [False, True])
def test_what_one_rank_cannot_read_or_preprocess_ends_alike_on_all(pool, tmp_path, replaced):
    for row in range(6):
        Image.new("RGB", (12, 9 if row == 3 else 8)).save(tmp_path / f"{row}.png")
    (tmp_path / "5.png").unlink()
    one, other = pool(2, embedded_on_ranks, str(tmp_path), replaced)
    assert one == other
    if replaced:
        assert one == "preprocessing image 3 failed: ValueError: nine rows"
    else:
        assert list(one) == [5] and one[5].startswith("file that cannot be read: image ")


@pytest.mark.parametrize("every_n_steps", [2, None])
def test_training_is_bit_for_bit_what_it_is_without_and_the_average_is_what_is_measured(
    tmp_path, every_n_steps
):
    keep = Keep()
    evaluation = Evaluation(Emoji(), "gpr", [keep, Drawing()], every_n_steps)
    _, plain = fit(tmp_path / "plain", 4, model=module(0.5), val_check_interval=4)
    drawn = torch.rand(3), random.random(), np.random.rand()
    _, model = fit(tmp_path / "with", 4, evaluation, model=module(0.5), val_check_interval=4)
    assert torch.equal(torch.rand(3), drawn[0]) and (random.random(), np.random.rand()) == drawn[1:]
    assert [part.training for part in model.modules()] == [part.training for part in plain.modules()]
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value), name
    average = Embedder(load(tmp_path / "with" / "model")).labelled(Emoji().open()).embeddings
    weights = Embedder(model.model.eval()).labelled(Emoji().open()).embeddings
    torch.testing.assert_close(keep.kept[-1], average, rtol=0, atol=1e-6)
    assert (weights - average).abs().max() > 1e-3 and not model.average.in_use


def test_every_n_steps_and_the_last_are_measured_and_logged_at_once(tmp_path):
    rows = []

    class Read(Callback):
        def on_train_batch_end(self, trainer, *args):
            rows.append(len(logged(tmp_path, "gpr/score")))

    two = [
        Evaluation(Emoji(), "gpr", [Scripted(0.1, math.nan, 0.3)], every_n_steps=2),
        Evaluation(Emoji(), "val", [Scripted(7)]),
    ]
    logger = CSVLogger(tmp_path, name="logs")
    run, _ = fit(tmp_path, 5, *two, Read(), logger=logger, val_check_interval=4)
    assert logged(tmp_path, "gpr/score") == [(2, 0.1), (5, 0.3)]  # the one of step 4 was not defined
    assert logged(tmp_path, "val/score") == [(4, 7.0)]
    assert rows == [0, 1, 1, 1, 2]
    assert run.callback_metrics["gpr/score"].item() == pytest.approx(0.3)


def test_a_model_that_cannot_be_measured_is_reported_and_trains_on(tmp_path, caplog):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with torch.no_grad():
                pl_module.model.image.projection.weight.fill_(math.nan)

    evaluation = Evaluation(Emoji(), evaluators=[Retrieval(), KNN(), ZeroShot()], every_n_steps=2)
    with caplog.at_level(logging.WARNING):
        run, _ = fit(
            tmp_path,
            4,
            Break(),
            evaluation,
            StepCheckpoint(2, monitor="val/map", mode="max"),
            val_check_interval=2,
        )
    assert run.global_step == 4
    lines = [line for line in caplog.messages if line.startswith("Evaluation 'val' at step 2")]
    assert len(lines) == 1 and lines[0].count("embeddings") == 1 and "nothing is logged" in lines[0]
    assert not any(name.startswith("val/map") for name in run.callback_metrics)
    assert not (tmp_path / "checkpoints" / "best").exists()


def test_what_does_not_go_with_the_model_is_said_once(tmp_path, caplog):
    model = PretrainingModule(replace(ENCODER, text=None), functools.partial(EntitySoftmax, num_sampled=40))
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, 4, Evaluation(Emoji(), "gpr", [ImageText(), Retrieval()], every_n_steps=2), model=model)
    assert [line for line in caplog.messages if "gpr" in line and "text tower" in line] == [
        "Evaluation 'gpr': zeroshot_retrieval is not measured: the model has no text tower"
    ]


def kept_best(root, every_n_steps):
    """The best checkpoint by a scripted score of steps 2, 4 and 6."""
    evaluation = Evaluation(Emoji(), "gpr", [Scripted(0.2, 0.5, "fail")], every_n_steps)
    checkpoint = StepCheckpoint(2, monitor="gpr/score", mode="max")
    seen = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                seen.update({name: whole(p) for name, p in pl_module.named_parameters()})

    fit(root, 6, evaluation, checkpoint, Look(), val_check_interval=2)
    return checkpoint.best_model_path, seen


@pytest.mark.parametrize(
    ("ranks", "every_n_steps"),
    [pytest.param(1, 2, marks=_SLOW), (1, None), (2, 2), pytest.param(2, None, marks=_SLOW)],
)
def test_the_best_checkpoint_by_any_measure_is_kept(pool, tmp_path, ranks, every_n_steps):
    (path, seen), *_ = pool(ranks, kept_best, str(tmp_path), every_n_steps)
    assert Path(path).name == "step=00000004.ckpt" and Path(path).parent.name == "best"
    note = json.loads((tmp_path / "checkpoints" / "best" / "score.json").read_text())
    assert (note["step"], note["monitor"], note["score"]) == (4, "gpr/score", 0.5)
    for name, value in load(path).named_parameters():
        assert torch.equal(value, seen[f"model.{name}"]), name


def test_a_monitored_value_that_cannot_come_is_refused_before_training(tmp_path):
    retrieval = functools.partial(Evaluation, Emoji())
    with pytest.raises(InputError, match=r"'val/acc1', but Evaluation 'val' measures map, .* add ZeroShot"):
        fit(tmp_path, 2, retrieval(), StepCheckpoint(monitor="val/acc1", mode="max"), val_check_interval=2)
    with pytest.raises(
        InputError, match=r"no validation .set data.validation. and no Evaluation called 'gpr'"
    ):
        fit(tmp_path, 2, StepCheckpoint(monitor="gpr/map", mode="max"), limit_val_batches=0)
    step = StepCheckpoint(monitor="val/recall@7", mode="max")  # known only when it has been measured
    with pytest.raises(InputError, match=r"'val/recall@7', which validation does not log; .*val/recall@5"):
        fit(tmp_path, 4, retrieval(every_n_steps=2), step, limit_val_batches=0)


def test_evaluations_that_cannot_work_are_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="two Evaluations are called 'val'"):
        fit(tmp_path, 2, Evaluation(Emoji()), Evaluation(Emoji(5)))
    with pytest.raises(InputError, match="'val' comes with every validation, and there is none"):
        fit(tmp_path, 2, Evaluation(Emoji()), limit_val_batches=0)
    with pytest.raises(InputError, match=r"no evaluation set at .*nothing.parquet; give"):
        fit(tmp_path, 2, Evaluation(tmp_path / "nothing.parquet"))
    for options in ({"every_n_steps": 0}, {"batch_size": 0}, {"workers": 0}):
        with pytest.raises(InputError, match=f"Evaluation.{next(iter(options))} is 0; give a positive"):
            Evaluation(Emoji(), **options)
    for evaluators, shown in (([], "none"), ([KNN(), KNN(k=(1,))], "knn, knn")):
        with pytest.raises(InputError, match=f"of 'val' are {shown}; give one or more"):
            Evaluation(Emoji(), evaluators=evaluators)
    assert not (tmp_path / "checkpoints").exists()


class Killed(RuntimeError):
    pass


class Kill(Callback):
    """Ends the process within the validation that follows a step, as a machine would or as a signal does."""

    def __init__(self, step, save):
        self.step = step
        self.save = save

    def on_validation_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            if self.save:
                trainer.checkpoint_callback.save_now(trainer)
            raise Killed


@pytest.mark.parametrize("save", [False, True])
def test_a_run_killed_within_a_validation_measures_its_step_when_it_goes_on(tmp_path, save):
    logger = functools.partial(CSVLogger, tmp_path, name="logs")
    monitor = {"monitor": "gpr/score", "mode": "max"}
    saving = StepCheckpoint(3 if save else 2, **monitor)
    with pytest.raises(Killed):
        evaluation = Evaluation(Emoji(), "gpr", [Scripted(0.1, 0.9)])
        fit(tmp_path, 6, evaluation, saving, Kill(4, save), val_check_interval=2, logger=logger())
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "step=00000004.ckpt"
    evaluation = Evaluation(Emoji(), "gpr", [Scripted(0.9, 0.3)])
    checkpoint = StepCheckpoint(2, **monitor)
    fit(tmp_path, 6, evaluation, checkpoint, val_check_interval=2, logger=logger(), resume=newest)
    assert logged(tmp_path, "gpr/score") == [(2, 0.1), (4, 0.9), (6, 0.3)]
    assert Path(checkpoint.best_model_path).parts[-2:] == ("best", "step=00000004.ckpt")
    load(checkpoint.best_model_path)


def test_an_evaluation_every_n_steps_is_not_repeated_by_a_resume_and_not_lost(tmp_path):
    class Stop(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                raise Killed

    logger = functools.partial(CSVLogger, tmp_path, name="logs")
    with pytest.raises(Killed):
        evaluation = Evaluation(Emoji(), "gpr", [Scripted(0.1, 0.2)], every_n_steps=2)
        fit(tmp_path, 6, evaluation, StepCheckpoint(4), Stop(), logger=logger())
    evaluation = Evaluation(Emoji(), "gpr", [Scripted(0.3)], every_n_steps=2)
    fit(tmp_path, 6, evaluation, StepCheckpoint(4), logger=logger(), resume=latest_checkpoint(tmp_path))
    assert logged(tmp_path, "gpr/score") == [(2, 0.1), (4, 0.2), (6, 0.3)]


@pytest.mark.parametrize("first", [True, False])
def test_evaluations_do_not_count_as_time_of_training(tmp_path, first):
    class Slow(Evaluator):
        task, measures = "slow", ("slow",)

        def __call__(self, embedder, data):
            time.sleep(0.3)
            return Measurement(values={"slow": 1.0})

    class Clock(Callback):
        def on_train_start(self, trainer, pl_module):
            self.started = time.perf_counter()

        def on_train_end(self, trainer, pl_module):
            self.seconds = time.perf_counter() - self.started

    summary, evaluation = RunSummary(), Evaluation(Emoji(), "gpr", [Slow()], every_n_steps=2)
    clock = Clock()
    fit(tmp_path, 5, clock, *([evaluation, summary] if first else [summary, evaluation]))
    assert evaluation.seconds > 3 * 0.3
    assert 0 < summary.totals.seconds <= clock.seconds - evaluation.seconds
    assert 0 <= summary.totals.waited <= summary.totals.seconds


def test_a_validation_alone_measures_whatever_the_interval_of_training_is(tmp_path):
    evaluation = Evaluation(Emoji(), "gpr", [Scripted(0.25)], every_n_steps=100)
    run = trainer(tmp_path, 1, callbacks=[evaluation])
    run.validate(module(), datamodule=SyntheticDataModule(rows=12, num_entities=101), verbose=False)
    assert float(run.logged_metrics["gpr/score"]) == 0.25


def test_yaml_names_data_by_path_or_class_and_evaluators_by_class(tmp_path):
    callbacks = """[
        {class_path: Evaluation, init_args: {data: pairs/validation.parquet}},
        {class_path: Evaluation, init_args: {
            data: {class_path: PairsFile, init_args: {path: pairs/test.parquet}},
            name: test, every_n_steps: 10,
            evaluators: [{class_path: KNN, init_args: {k: [1]}}, {class_path: ZeroShot}]}}]"""
    words = ["--model.encoder.image", "mofi/tiny", "--data", "mofi_lightning.testing.SyntheticDataModule"]
    words += ["--trainer.max_steps", "10", "--trainer.default_root_dir", str(tmp_path)]
    cli = build([*words, "--trainer.logger", "false", "--trainer.callbacks", callbacks], run=False)
    first, second = (c for c in cli.trainer.callbacks if isinstance(c, Evaluation))
    assert first.data == Path("pairs/validation.parquet") and first.name == "val"
    assert [type(evaluator) for evaluator in first.evaluators] == [Retrieval]
    assert isinstance(second.data, PairsFile) and second.data.path == Path("pairs/test.parquet")
    assert second.every_n_steps == 10 and second.evaluators[0].k == (1,)
    assert isinstance(second.evaluators[1], ZeroShot)
