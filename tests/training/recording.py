"""Training processes that write down what they do, so that they can be killed and compared."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mofi_lightning import cli

REPOSITORY = Path(__file__).parents[2]
Record = tuple[int, int, str]

# A server that has imported everything forks a process in milliseconds; an import of Lightning takes seconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mofi_lightning.training.command", "timm", "transformers.models.clip"])


class StepRecord(Callback):
    """Writes one line a step and rank, on the disk before the next step begins.

    Args:
        folder: receives `rank-N.jsonl`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._file = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open this rank's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.folder / f"rank-{trainer.global_rank}.jsonl", os.O_CREAT | os.O_WRONLY)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write step, keys and loss, the last one with all its digits."""
        line = {"step": trainer.global_step, "keys": batch["key"], "loss": outputs["loss"].item()}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)


class Attempt:
    """One `mofi fit` on CPU, in processes of its own.

    Args:
        words: after `mofi fit`.
        folder: receives the records and the output.
        ranks: number of processes that train.
        forked: start them from the warm server, with the environment that torchrun would set, instead of with
            the command, which starts the other ranks itself.
    """

    def __init__(self, words: list[str], folder: Path, ranks: int, forked: bool) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        record = f"{{class_path: {__name__}.StepRecord, init_args: {{folder: {folder}}}}}"
        words = ["fit", *words, "--trainer.callbacks+", record]
        words += ["--trainer.accelerator", "cpu", "--trainer.devices", str(ranks)]
        self._processes: list[Any] = []
        if forked:
            port = _free_port()
            for rank in range(ranks):
                place = {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                environment = place if ranks > 1 else {}
                process = _SERVER.Process(target=_fit, args=(words, environment, self._output(rank)))
                process.start()
                self._processes.append(process)
        else:
            with self._output(0).open("w") as output:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "mofi_lightning", *words],
                        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    @property
    def records(self) -> list[Record]:
        """Step, rank and line of what was recorded so far."""
        found = []
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    found.append((json.loads(line)["step"], int(path.stem[5:]), line))
        return found

    @property
    def output(self) -> str:
        """What the processes have printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.txt")))

    def wait_for(self, step: int, timeout: float = 120) -> None:
        """Return as soon as a rank has recorded `step`, or one after it."""
        deadline = time.monotonic() + timeout
        while not any(done >= step for done, *_ in self.records):
            assert self._running(), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.002)

    def wait_for_write(self, checkpoints: Path, timeout: float = 120) -> None:
        """Return as soon as a checkpoint is being written into the folder `checkpoints`, or all has ended."""
        deadline = time.monotonic() + timeout
        before = set(checkpoints.glob("*.partial"))  # what an earlier kill left behind
        while not set(checkpoints.glob("*.partial")) - before and self._running():
            assert time.monotonic() < deadline, self.output
            time.sleep(0.0005)

    def kill(self) -> None:
        """End all processes, those of the data loaders too, with no chance to tidy up."""
        assert self._running(), self.output
        self.close()

    def finish(self, timeout: float = 120) -> None:
        """Wait until the processes have ended well."""
        deadline = time.monotonic() + timeout
        try:
            while self._running():
                assert time.monotonic() < deadline, self.output
                time.sleep(0.02)
            assert self._codes() == [0] * len(self._processes), self.output
        finally:
            self.close()

    def close(self) -> None:
        """Leave no process behind."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # one that leads no group yet
        while None in self._codes():
            time.sleep(0.002)
        self._processes.clear()  # their numbers may soon be those of others

    def _output(self, rank: int) -> Path:
        return self.folder / f"output-{rank}.txt"

    def _codes(self) -> list[int | None]:
        return [p.poll() if isinstance(p, subprocess.Popen) else p.exitcode for p in self._processes]

    def _running(self) -> bool:
        """Whether any process runs and none has failed."""
        codes = self._codes()
        return None in codes and not any(codes)


def _fit(words: list[str], environment: dict[str, str], output: Path) -> None:
    os.setsid()  # so that a kill reaches the data loader's workers
    os.environ.update(environment)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # of the data loader's workers, as without the server
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    cli.main(words)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
