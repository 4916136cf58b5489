"""A run that is told to stop finishes its step, saves it, and is resumed as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from tests.training import recording
from tests.training.recording import Attempt

from mofi_lightning import cli
from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.training.checkpoints.folders import latest_checkpoint, step_of

CONFIG = Path(__file__).parents[2] / "configs" / "fit" / "synthetic.yaml"


def fit(root: Path, *words: str, steps: int = 6) -> list[str]:
    options = {
        "config": CONFIG,
        "trainer.accelerator": "cpu",
        "trainer.max_steps": steps,
        "trainer.default_root_dir": root,
        "trainer.val_check_interval": 3,
        "trainer.enable_progress_bar": "false",
        "trainer.num_sanity_val_steps": 0,
    }
    return ["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value))), *words]


class Signal(Callback):
    """Sends a signal to this process: within a training step, or within a batch of validation.

    Args:
        step: after which, or in which, it is sent.
        signum: the signal's number.
        where: 'training' or 'validation'.
        rank: that gets it.
    """

    def __init__(self, step: int, signum: int, where: str = "training", rank: int = 0) -> None:
        self.step = step
        self.signum = signum
        self.where = where
        self.rank = rank

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """In a step."""
        if self.where == "training" and trainer.global_step + 1 == self.step:
            self._send(trainer)

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        """In validation."""
        sanity = trainer.sanity_checking
        if self.where == ("sanity" if sanity else "validation") and trainer.global_step == self.step:
            self._send(trainer)

    def _send(self, trainer: Any) -> None:
        if trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.signum)


def sending(step: int, signum: int, where: str = "training", rank: int = 0) -> list[str]:
    arguments = f"{{step: {step}, signum: {int(signum)}, where: {where}, rank: {rank}}}"
    return ["--trainer.callbacks+", f"{{class_path: {__name__}.Signal, init_args: {arguments}}}"]


def weights(root: Path) -> bytes:
    return (root / "model" / "model.safetensors").read_bytes()


def run(words: Sequence[str]) -> int:
    """The exit code of `mofi` in this process."""
    try:
        cli.main(words)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code
    return 0


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of the run that nothing disturbs."""
    root = tmp_path_factory.mktemp("left_alone")
    cli.main(fit(root, "--model.ema_decay", "0.9"))
    return weights(root)


@pytest.mark.parametrize(
    ("signum", "step", "where"),
    [
        (signal.SIGTERM, 2, "training"),
        (signal.SIGINT, 3, "training"),  # validation would follow
        (signal.SIGTERM, 3, "validation"),
    ],
)
def test_a_signal_saves_the_running_step_and_the_resumed_run_ends_as_the_one_left_alone(
    tmp_path, capfd, left_alone, signum, step, where
):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    words = fit(tmp_path, "--model.ema_decay", "0.9", "--ckpt_path", "last")
    assert run([*words, *sending(step, signum, where)]) == 128 + signum
    told = capfd.readouterr()
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and step_of(newest) == step
    assert f"stopped by {signum.name} at step {step}; saved {newest}" in told.out
    assert f"{signum.name}: the step is finished and saved first" in told.err
    assert not (tmp_path / "model").exists()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert run(words) == 0
    assert weights(tmp_path) == left_alone


def test_a_signal_in_the_last_step_lets_the_run_end_well(tmp_path, left_alone):
    assert run(fit(tmp_path, "--model.ema_decay", "0.9", *sending(6, signal.SIGTERM))) == 0
    assert weights(tmp_path) == left_alone


def test_a_signal_before_the_first_step_ends_a_run_that_leaves_nothing(tmp_path, capfd):
    assert (
        run(fit(tmp_path, "--trainer.num_sanity_val_steps", "1", *sending(0, signal.SIGTERM, "sanity")))
        == 143
    )
    assert "nothing to save" in capfd.readouterr().out
    assert latest_checkpoint(tmp_path) is None and not list((tmp_path / "logs").glob("*"))


def test_without_checkpoints_it_is_said_that_nothing_is_saved(tmp_path, capfd):
    words = fit(tmp_path, "--trainer.enable_checkpointing", "false", *sending(2, signal.SIGTERM))
    assert run(words) == 143
    assert "at step 2; nothing is saved" in capfd.readouterr().out


class Ranks(Attempt):
    """`mofi fit` in a process a rank, each of which can be signalled.

    Args:
        words: of the command line.
        folder: receives the records and the output.
        places: environment of each rank.
    """

    def __init__(self, words: Sequence[str], folder: Path, places: Sequence[dict[str, str]]) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        record = f"{{class_path: tests.training.recording.StepRecord, init_args: {{folder: {folder}}}}}"
        self._processes = []
        for rank, place in enumerate(places):
            every = [*words, "--trainer.callbacks+", record, "--trainer.devices", str(len(places))]
            process = recording._SERVER.Process(
                target=recording._fit, args=(every, place, self._output(rank))
            )
            process.start()
            self._processes.append(process)

    def send(self, signum: int, *ranks: int, group: bool = False) -> None:
        """Send a signal to ranks, or to all processes of their groups, those that load data too."""
        for rank in ranks:
            (os.killpg if group else os.kill)(self._processes[rank].pid, signum)

    def codes(self, timeout: float = 60) -> list[int | None]:
        """Exit codes, when all have ended; no process may remain."""
        deadline = time.monotonic() + timeout
        while None in self._codes():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)
        codes = self._codes()
        for process in self._processes:
            while _group_lives(process.pid):
                assert time.monotonic() < deadline, "a process is left"
                time.sleep(0.01)
        return codes


def _group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


class Slow(Callback):
    """Takes its time within each step, so that a signal meets one.

    Args:
        seconds: a step.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *args: Any) -> None:
        """Wait."""
        time.sleep(self.seconds)


def slow(seconds: float) -> list[str]:
    return ["--trainer.callbacks+", f"{{class_path: {__name__}.Slow, init_args: {{seconds: {seconds}}}}}"]


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun would set."""
    port = recording._free_port()
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**here, "LOCAL_RANK": str(rank)} for rank in range(ranks)] if ranks > 1 else [{}]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_whichever_of_two_ranks_is_told_to_stop_both_save_and_end(tmp_path, told, signum):
    words = fit(tmp_path / "run", *slow(0.02), "--ckpt_path", "last", steps=2000)
    ranks = Ranks(words, tmp_path / "first", places(2))
    try:
        ranks.wait_for(5)
        ranks.send(signum, *told)
        codes = ranks.codes()
    finally:
        ranks.close()
    assert codes == [128 + signum, 0], ranks.output  # Lightning kills all where a rank above 0 fails
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    last = max(ranks.records)[0]
    assert step_of(newest) == last
    assert f"saved {newest}" in ranks.output
    assert "Traceback" not in ranks.output


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_the_loaders_to_their_last_batch(tmp_path, emoji_slice, signum):
    write_dataset(PairsReader(emoji_slice / "train.parquet"), tmp_path / "data")
    options = {
        "trainer.max_steps": 30,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
        "model.encoder.text": "{width: 32, layers: 1, heads: 2, context_length: 32}",
        "data": "I2EDataModule",
        "data.sources": f"{{emoji: {{path: {tmp_path}/data, rows: 16}}}}",
        "data.num_workers": 2,
        "ckpt_path": "last",
    }
    words = ["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    cli.main([*words, "--trainer.default_root_dir", str(tmp_path / "left_alone")])
    words += ["--trainer.default_root_dir", str(tmp_path / "run")]
    first = Ranks([*words, *slow(0.05)], tmp_path / "first", places(1))
    try:
        first.wait_for(4)
        first.send(signum, 0, group=True)
        assert first.codes() == [128 + signum], first.output
    finally:
        first.close()
    assert "Traceback" not in first.output
    assert 4 <= max(first.records)[0] < 30
    assert run(words) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "left_alone")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_second_interrupt_ends_at_once(tmp_path):
    ranks = Ranks(fit(tmp_path / "run", *slow(60)), tmp_path / "first", places(1))
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "vocabulary.arrow").exists():  # written when training starts
            assert time.monotonic() < deadline, ranks.output
            time.sleep(0.01)
        time.sleep(0.5)
        ranks.send(signal.SIGINT, 0)
        ranks.send(signal.SIGINT, 0)  # the same key press, passed on by a launcher
        time.sleep(1.5)
        assert ranks._codes() == [None], ranks.output
        ranks.send(signal.SIGINT, 0)
        assert ranks.codes(timeout=5) == [-signal.SIGINT]
    finally:
        ranks.close()
    assert "Ctrl-C again ends at once" in ranks.output


def slurm(ranks: int, job: int, tools: Path, restarts: int = 0) -> list[dict[str, str]]:
    """What srun would set for one machine, with `tools` first on the path."""
    job_wide = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": "pretraining",
        "SLURM_NTASKS": str(ranks),
        "SLURM_NTASKS_PER_NODE": str(ranks),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_RESTART_COUNT": str(restarts),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(recording._free_port()),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    return [job_wide | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_under_slurm_a_job_is_queued_again_and_goes_on_with_the_same_command(tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f'#!/bin/sh\nls {tmp_path}/run/checkpoints >> {tmp_path}/calls\necho "$@" >> {tmp_path}/calls\n'
    )
    scontrol.chmod(0o755)
    words = fit(tmp_path / "run", steps=40)
    first = Ranks([*words, *slow(0.05)], tmp_path / "first", slurm(2, 4321987, scontrol.parent))
    try:
        first.wait_for(5)
        first.send(signal.SIGUSR1, 0, 1)
        assert first.codes() == [128 + signal.SIGUSR1] * 2, first.output
    finally:
        first.close()
    last = max(first.records)[0]
    assert (tmp_path / "calls").read_text() == f"step={last:08d}.ckpt\nrequeue 4321987\n"
    assert "job 4321987 is queued again" in first.output and "Traceback" not in first.output
    again = Ranks(words, tmp_path / "again", slurm(2, 4321987, scontrol.parent, restarts=1))
    try:
        assert again.codes() == [0, 0], again.output
    finally:
        again.close()
    assert min(again.records)[0] == last + 1 and max(again.records)[0] == 40


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_when_slurm_refuses_to_queue_a_job_again_it_is_said(tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
    scontrol.chmod(0o755)
    words = [*fit(tmp_path / "run", steps=400), *slow(0.05)]
    job = Ranks(words, tmp_path / "first", slurm(1, 77, scontrol.parent))
    try:
        job.wait_for(2)
        job.send(signal.SIGUSR1, 0)
        assert job.codes() == [128 + signal.SIGUSR1], job.output
    finally:
        job.close()
    assert "job 77 is not queued again" in job.output and "presently disabled" in job.output
    assert latest_checkpoint(tmp_path / "run") is not None


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_with_one_clear_line(tmp_path, lost):
    words = [*fit(tmp_path / "run", steps=4000), *slow(0.02)]
    ranks = Ranks(words, tmp_path / "first", places(2))
    try:
        ranks.wait_for(3)
        ranks.send(signal.SIGKILL, lost)
        codes = ranks.codes(timeout=30)
    finally:
        ranks.close()
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] == 2, ranks.output
    told = [line for line in ranks.output.splitlines() if "mofi: error:" in line]
    assert len(told) == 1 and "another of the 2 processes has ended" in told[0]
    assert "Traceback" not in ranks.output


class Fault(Callback):
    """Raises within a step.

    Args:
        step: in which.
        rank: on which.
    """

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        """Raise."""
        if trainer.global_rank == self.rank and trainer.global_step + 1 == self.step:
            raise ValueError("a fault of one rank")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_the_other(tmp_path, rank):
    fault = f"{{class_path: {__name__}.Fault, init_args: {{step: 4, rank: {rank}}}}}"
    words = [*fit(tmp_path / "run", steps=4000), "--trainer.callbacks+", fault]
    ranks = Ranks(words, tmp_path / "first", places(2))
    try:
        codes = ranks.codes(timeout=60)
    finally:
        ranks.close()
    assert codes[rank] == 1 and codes[1 - rank] == 2, ranks.output
    assert "ValueError: a fault of one rank" in ranks.output
    assert "another of the 2 processes has ended" in ranks.output


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_command_that_has_started_the_other_ranks_ends_them_with_a_checkpoint(tmp_path):
    words = [*fit(tmp_path / "run", steps=4000), *slow(0.02)]
    attempt = Attempt(words[1:], tmp_path / "first", 2, forked=False)
    try:
        attempt.wait_for(4)
        os.kill(attempt._processes[0].pid, signal.SIGTERM)
        assert attempt._processes[0].wait(60) == 143, attempt.output
        deadline = time.monotonic() + 20
        while _group_lives(attempt._processes[0].pid):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.05)
    finally:
        attempt.close()
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None and step_of(newest) == max(attempt.records)[0]
    assert "Traceback" not in attempt.output
