"""What a run says of its speed: by hand calculation, on runs whose waits are known."""

import csv
import json
import time

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from tests.training.runs import module, trainer

from mofi_lightning.testing import SyntheticDataModule
from mofi_lightning.training import RunSummary, StepCheckpoint
from mofi_lightning.training.monitoring.peak_rates import peak_rate
from mofi_lightning.training.planning.flops import image_flops, text_flops
from mofi_lightning.types import InputError

_WAIT = 0.05
_PEAK = 1e9


class SlowData(SyntheticDataModule):
    """Each batch takes a while to come."""

    def global_batch(self, step):
        time.sleep(_WAIT)
        return super().global_batch(step)


class SlowStep(Callback):
    """Each step takes a while."""

    def on_train_batch_start(self, *_):
        time.sleep(_WAIT)


class Clock:
    """Stands still but for what the run is said to take."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class TimedCheckpoint(StepCheckpoint):
    """Says that training stood still for 100 s at every step, and saves nothing."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def on_train_batch_end(self, *_):
        self.clock.now += 100
        self.seconds += 100


class TimedRun(Callback):
    """Steps of 2 s, validations of 1000 s."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_start(self, *_):
        self.clock.now += 2

    def on_validation_start(self, *_):
        self.clock.now += 1000


def fit(folder, callbacks, steps=4, data=SyntheticDataModule, model=None, validate_every=10**6, **options):
    seed_everything(3, verbose=False)
    options = {"logger": CSVLogger(folder, name="logs"), "log_every_n_steps": 2, **options}
    run = trainer(folder, steps, callbacks=callbacks, **options)
    run.val_check_interval = validate_every
    run.fit(model or module(), datamodule=data(rows=24, num_entities=101))
    return run


def rows_of(folder):
    (path,) = folder.glob("logs/version_*/metrics.csv")
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["train/images_per_second"]]


def test_what_is_logged_at_the_interval_is_what_training_took(tmp_path):
    fit(tmp_path, [RunSummary(), SlowStep()], data=SlowData)
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == ["1", "3"]
    for row in rows:
        seconds = 2 * 24 / float(row["train/images_per_second"])
        waited = float(row["train/data_wait"]) * seconds
        assert seconds >= 4 * _WAIT  # two waits for data and two slow steps
        assert 2 * _WAIT <= waited <= seconds - 2 * _WAIT
        assert 0.05 < float(row["train/memory_gb"]) < 20  # the process with torch in it
        assert "train/mfu" not in row
    total = sum(2 * 24 / float(row["train/images_per_second"]) for row in rows)
    assert summary["seconds"] == pytest.approx(total, abs=0.02)
    assert summary["images_per_second"] == pytest.approx(4 * 24 / total, rel=0.02)
    assert summary["steps"] == 4 and summary["skipped_steps"] == 0 and summary["mfu"] is None
    assert summary["memory_gb"] >= max(round(float(row["train/memory_gb"]), 3) for row in rows)


def test_checkpoints_and_validation_are_left_out_of_the_times(tmp_path, monkeypatch):
    clock, summary = Clock(), RunSummary()
    monkeypatch.setattr("mofi_lightning.training.monitoring.run_summary.time", clock)

    class TimedData(SyntheticDataModule):
        def global_batch(self, step):
            clock.now += 1
            return super().global_batch(step)

    callbacks = [summary, TimedRun(clock), TimedCheckpoint(clock)]
    fit(tmp_path, callbacks, steps=5, data=TimedData, validate_every=2, enable_checkpointing=True)
    assert clock.now > 2000 + 500
    assert summary.totals.waited == 5 * 1
    assert summary.totals.seconds == 5 * (1 + 2)


def test_data_wait_is_all_that_lies_between_steps(tmp_path, monkeypatch):
    clock, summary = Clock(), RunSummary()
    monkeypatch.setattr("mofi_lightning.training.monitoring.run_summary.time", clock)

    class Other(Callback):
        def on_train_batch_end(self, *_):
            clock.now += 3

    fit(tmp_path, [summary, TimedRun(clock), Other()])
    assert (summary.totals.waited, summary.totals.seconds) == (3 * 3, 3 * 3 + 4 * 2)


def test_totals_go_on_after_a_resume(tmp_path):
    summary, more = RunSummary(), RunSummary()
    fit(tmp_path, [summary])
    more.load_state_dict(json.loads(json.dumps(summary.state_dict())))
    fit(tmp_path / "more", [more])
    assert more.totals.images == 8 * 24 and more.totals.tokens == 2 * summary.totals.tokens > 0
    assert more.totals.seconds > summary.totals.seconds > 0


def test_nothing_is_logged_where_the_trainer_logs_nothing(tmp_path):
    run = fit(tmp_path, [RunSummary()], log_every_n_steps=0)
    assert not [name for name in run.logged_metrics if name.startswith("train/")]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 4


@pytest.mark.parametrize("frozen", [False, True])
def test_mfu_is_three_forward_passes_over_the_peak_and_one_where_an_encoder_is_frozen(tmp_path, frozen):
    model = module()
    model.frozen = ["model.image.*"] if frozen else []
    summary = RunSummary(peak_flops=_PEAK)
    fit(tmp_path, [summary], model=model)
    tokens = round(summary.totals.tokens / summary.totals.images)
    flops = (1 if frozen else 3) * image_flops(model.model) + 3 * text_flops(model.model, tokens)
    for row in rows_of(tmp_path):
        expected = flops * float(row["train/images_per_second"]) / _PEAK
        assert float(row["train/mfu"]) == pytest.approx(expected, rel=1e-3)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["mfu"] == pytest.approx(flops * 96 / summary.totals.seconds / _PEAK, rel=1e-3)


def test_a_peak_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="peak_flops is 0"):
        RunSummary(peak_flops=0)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989e12),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756e12),
        ("NVIDIA H200", "bf16-mixed", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", 19.5e12),
        ("NVIDIA A100-SXM4-80GB", "64-true", None),
        ("NVIDIA A10", "bf16-mixed", None),
    ],
)
def test_peaks_are_the_dense_rates_of_the_datasheets(device, precision, expected):
    assert peak_rate(device, precision) == expected


def test_fp32_counts_as_tf32_where_torch_may_use_it():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert peak_rate("NVIDIA A100-SXM4-80GB", "32-true") == 156e12
    finally:
        torch.set_float32_matmul_precision(before)
