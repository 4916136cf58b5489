"""What a run logs, and what its bar shows."""

import csv
import functools
import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from tests.training.runs import ENCODER, trainer

from mofi_lightning.objectives import MOFI
from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import Optimization, PretrainingModule
from mofi_lightning.training.monitoring.callbacks import StepProgressBar
from mofi_lightning.types import ObjectiveOutput

_OPTIMIZATION = Optimization(lr=1e-3, warmup_steps=4)


class Faulty(MOFI):
    """Its loss is not finite at a step, and it logs something at others only."""

    def __init__(self, spec, bad_step=-1):
        super().__init__(spec)
        self.bad_step = bad_step
        self.calls = 0

    def forward(self, embeddings, batch):
        output = super().forward(embeddings, batch)
        step, self.calls = self.calls, self.calls + 1
        logs = dict(output.logs)
        if step % 2:
            logs["odd"] = torch.tensor(float(step))
        return ObjectiveOutput(output.loss * (math.nan if step == self.bad_step else 1), logs)


def run_with(folder, steps, interval, bad_step=-1, callbacks=()):
    """Train, writing down the loss of each step of this rank."""
    seed_everything(3, verbose=False)
    model = PretrainingModule(ENCODER, functools.partial(Faulty, bad_step=bad_step), _OPTIMIZATION)
    losses, original = [], model.training_step

    def record(batch, batch_idx):
        loss = original(batch, batch_idx)
        losses.append(loss.item())
        return loss

    model.training_step = record
    logger = CSVLogger(folder, name="logs")
    run = trainer(folder, steps, logger=logger, log_every_n_steps=interval)
    run.callbacks += callbacks  # a bar too, which this trainer would not take
    run.fit(model, datamodule=SyntheticDataModule(rows=24, num_entities=101))
    return model, losses


def rows_of(folder):
    (path,) = folder.glob("logs/version_*/metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def losses_of_rank(folder, steps, interval):
    return run_with(folder, steps, interval)[1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_logger_gets_the_means_since_the_last_time_over_steps_and_ranks(pool, tmp_path, ranks):
    losses = torch.tensor(pool(ranks, losses_of_rank, tmp_path, 6, 3)).double().mean(0)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == ["2", "5"]
    for row, expected in zip(rows, losses.view(2, 3).mean(1).tolist(), strict=True):
        assert float(row["train/loss"]) == pytest.approx(expected, rel=1e-6)
        norms = [float(row[f"train/grad_norm/{part}"]) for part in ("image", "text", "objective")]
        assert float(row["train/grad_norm/total"]) == pytest.approx(math.hypot(*norms), rel=1e-6)
        assert min(norms) > 0
        assert float(row["train/contrastive/logit_scale"]) == pytest.approx(1 / 0.07, rel=0.01)
    assert [float(row["train/odd"]) for row in rows] == [1, 4]  # of step 1, and of steps 3 and 5


def test_callbacks_can_monitor_what_the_loggers_get(tmp_path):
    seen = {}

    class Last(Callback):
        def on_train_end(self, trainer, pl_module):
            seen.update(trainer.callback_metrics)

    run_with(tmp_path, 6, 3, callbacks=[Last()])
    last = rows_of(tmp_path)[-1]
    for name in ("train/loss", "train/lr", "train/grad_norm/total"):
        assert seen[name].item() == pytest.approx(float(last[name]), rel=1e-6)


def test_the_learning_rate_is_that_with_which_the_logged_step_was_taken(tmp_path):
    run_with(tmp_path, 6, 1)
    rates = [float(row["train/lr"]) for row in rows_of(tmp_path)]
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 2)) for step in range(2)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, *cosine])


def test_a_skipped_step_is_counted_and_not_in_the_means(tmp_path):
    _, losses = run_with(tmp_path, 6, 3, bad_step=4)
    first, second = rows_of(tmp_path)
    assert math.isnan(losses[4])
    assert float(first["train/loss"]) == pytest.approx(sum(losses[:3]) / 3, rel=1e-6)
    assert float(second["train/loss"]) == pytest.approx((losses[3] + losses[5]) / 2, rel=1e-6)
    assert [float(row["train/skipped_steps"]) for row in (first, second)] == [0, 1]


def test_the_bar_shows_the_newest_loss_where_the_logger_gets_a_mean_only_now_and_then(tmp_path):
    shown = []

    class Bar(StepProgressBar):
        def get_metrics(self, trainer, pl_module):
            metrics = super().get_metrics(trainer, pl_module)
            shown.append(metrics)
            return metrics

    _, losses = run_with(tmp_path, 5, 50, callbacks=[Bar(refresh_rate=2)])
    assert [metrics["train/loss"] for metrics in shown[:2]] == pytest.approx([losses[1], losses[3]])
    assert all(set(metrics) == {"train/loss"} for metrics in shown)
