"""A training process that is killed goes on where it was."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mofi_lightning.data.build import build_dataset

STEPS, EVERY = 40, 4


def command(data: Path, root: Path) -> list[str]:
    overrides = {
        "trainer.max_steps": STEPS,
        "trainer.default_root_dir": root,
        "trainer.callbacks": f"[{{class_path: StepCheckpoint, init_args: {{every_n_steps: {EVERY}}}}}]",
        "trainer.logger": "false",
        "trainer.val_check_interval": 10**6,
        "data": "I2EDataModule",
        "data.sources": f"{{pairs: {{path: {data}, rows: 32}}}}",
        "data.num_workers": 2,
        "model.encoder.text": "{width: 32, layers: 1, heads: 2, context_length: 32}",
        "model.objective": "CLIP",
        "ckpt_path": "last",
    }
    words = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mofi_lightning", "fit", *words]


def run(words: list[str], kill_after: int | None = None) -> str:
    """Output of the process; with `kill_after`, SIGKILL once that many steps are checkpointed and a bit."""
    root = Path(words[words.index("--trainer.default_root_dir") + 1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if kill_after is not None:
            deadline = time.monotonic() + 120
            while not any(int(p.stem[5:]) >= kill_after for p in root.glob("checkpoints/step=*.ckpt")):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.002)
        else:
            output, _ = process.communicate(timeout=150)
            assert process.returncode == 0, output
            return output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_kill_at_seeded_moments_and_resume_gives_the_undisturbed_weights(emoji_slice, tmp_path):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed}")
    moments = sorted(random.Random(seed).sample(range(EVERY, STEPS - EVERY, EVERY), 2))
    data = tmp_path / "data"
    build_dataset(emoji_slice / "train.parquet", data)

    run(command(data, tmp_path / "undisturbed"))
    killed = command(data, tmp_path / "killed")
    for moment in moments:
        run(killed, kill_after=moment)
        assert not (tmp_path / "killed" / "model").exists()
    assert "resuming from" in run(killed)

    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("undisturbed", "killed")
    ]
    assert weights[0] == weights[1]
