"""The same command trains the same under torchrun, under SLURM and with Lightning's own launcher."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mofi_lightning import load

REPOSITORY = Path(__file__).parents[2]
STEPS = 4
LIMIT = 200  # seconds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT + 60)]


def fit(root: Path) -> list[str]:
    """Words after `python` that train on two processes."""
    configs = ["configs/fit/synthetic.yaml", "configs/strategy/sharded.yaml"]
    return [
        *("-m", "mofi_lightning", "fit"),
        *(word for config in configs for word in ("--config", config)),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2"),
        *("--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "1"),
        *("--trainer.default_root_dir", str(root), "--data.init_args.rows", "16"),
    ]


def run_all(commands: list[list[str]], environments: list[dict[str, str]]) -> None:
    """Run python processes at the same time; all have ended, with what they started, when this returns."""
    plain = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "RANK", "WORLD_SIZE"))
    }
    plain |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=plain | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.terminate()  # torchrun's workers have a session of their own; it ends them when asked
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def by_torchrun(root: Path) -> None:
    run_all([["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *fit(root)]], [{}])


def by_slurm(root: Path) -> None:
    """What srun gives each of two tasks on one machine."""
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "fit",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()),
    }
    tasks = [job | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)]
    run_all([fit(root)] * 2, tasks)


def by_lightning(root: Path) -> None:
    run_all([fit(root)], [{"MASTER_PORT": str(free_port())}])


def losses(root: Path) -> list[float]:
    rows = csv.DictReader((root / "logs" / "version_0" / "metrics.csv").open())
    return [float(row["train/loss"]) for row in rows if row.get("train/loss")]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    words = fit(root)
    words[words.index("--trainer.devices") + 1] = "1"
    run_all([words], [{}])
    return root


@pytest.mark.parametrize("launch", [by_torchrun, by_slurm, by_lightning], ids=lambda launch: launch.__name__)
def test_two_processes_of_every_launcher_train_what_one_process_trains(launch, tmp_path, one_process):
    launch(tmp_path)
    assert len(losses(tmp_path)) == STEPS
    assert losses(tmp_path) == pytest.approx(losses(one_process), rel=1e-4)
    weights, expected = (load_file(r / "model" / "model.safetensors") for r in (tmp_path, one_process))
    assert weights.keys() == expected.keys()
    steps_of_adam = STEPS * 1e-3 * STEPS / 100  # the rate after as many of 100 warm-up steps bounds each step
    assert max((weights[n] - expected[n]).abs().max() for n in expected) < steps_of_adam
    assert load(tmp_path / "model").encode_text(["ba do"]).shape == (1, 64)
    assert len(list((tmp_path / "logs").iterdir())) == 1  # only one process logs
