"""A training process that is killed goes on where it was: no row is lost or repeated, no loss changes."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.training.recording import Attempt, Record

from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.training.checkpoints.folders import latest_checkpoint, step_of

# a pass takes 4 steps and 4 rows, or 5 steps and 4 rows, so most passes end within a step
LENGTHS = {"long": 100, "short": 44}
ROWS_OF_A_STEP = {"long": 24, "short": 8}
STEPS, EVERY = 40, 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, emoji_slice: Path) -> Path:
    """Two data sets of several chunks each, without a row in common."""
    folder = tmp_path_factory.mktemp("sources")
    reader = PairsReader(emoji_slice / "train.parquet")
    rows = iter([reader[n] for n in range(sum(LENGTHS.values()))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 20_000)
        for name, length in LENGTHS.items():
            write_dataset([next(rows) for _ in range(length)], folder / name)
    return folder


def words(sources: Path, root: Path) -> list[str]:
    data = {name: {"path": str(sources / name), "rows": rows} for name, rows in ROWS_OF_A_STEP.items()}
    options = {
        "trainer.max_steps": STEPS,
        "trainer.default_root_dir": root,
        "trainer.callbacks": f"[{{class_path: StepCheckpoint, init_args: {{every_n_steps: {EVERY}}}}}]",
        "trainer.logger": "false",
        "trainer.val_check_interval": 10**6,
        "trainer.enable_progress_bar": "false",
        "data": "I2EDataModule",
        "data.sources": json.dumps(data),
        "data.num_workers": 2,
        "model.encoder.text": "{width: 32, layers: 1, heads: 2, context_length: 32}",
        "model.objective": "CLIP",
        "ckpt_path": "last",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def rows_by_source(records: list[Record], ranks: int) -> list[dict[str, list[str]]]:
    """The keys of each step, of all ranks."""
    steps: list[dict[str, list[str]]] = [{name: [] for name in LENGTHS} for _ in range(STEPS)]
    for step, _, line in records:
        keys = iter(json.loads(line)["keys"])
        for name, rows in ROWS_OF_A_STEP.items():
            steps[step - 1][name] += [next(keys) for _ in range(rows // ranks)]
    return steps


def assert_no_row_is_lost_or_repeated(records: list[Record], ranks: int) -> None:
    """Read n times the rows of a source and a part, each row has come n times, or once more."""
    for name, length in LENGTHS.items():
        seen: Counter[str] = Counter()
        for step in rows_by_source(records, ranks):
            assert len(step[name]) == ROWS_OF_A_STEP[name]
            seen.update(step[name])
            passes, part = divmod(seen.total(), length)
            counts = Counter(seen.values())
            assert counts[passes + 1] == part and counts[passes] == (length - part) * bool(passes)
        assert len(seen) == length


def check(sources: Path, root: Path, ranks: int, kills: int, writing: bool = False) -> None:
    """Kill and resume a run `kills` times at drawn steps and compare it with one that is left alone.

    With `writing`, the kill comes while a checkpoint is being written.
    """
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed}")
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(1, STEPS - 5), kills))
    left_alone = Attempt(words(sources, root / "left_alone"), root / "whole", ranks, forked=False)
    attempts: list[Attempt] = []
    cut_off = 0
    try:
        for number, moment in enumerate([*moments, None]):
            newest = latest_checkpoint(root / "killed")
            begin = 0 if newest is None else step_of(newest)
            forked = kills < 10 or number % 2 == 0  # the command itself takes several times as long to start
            attempt = Attempt(words(sources, root / "killed"), root / f"{number}", ranks, forked)
            attempts.append(attempt)
            if moment is None:
                attempt.finish()
            else:
                attempt.wait_for(moment)
                if writing:
                    attempt.wait_for_write(root / "killed" / "checkpoints")
                    time.sleep(draw.uniform(0, 0.02))  # anywhere in the write
                else:
                    time.sleep(draw.uniform(0, 0.1))  # anywhere in the next step or its checkpoint
                attempt.kill()
                cut_off += bool(list((root / "killed" / "checkpoints").glob("*.partial")))
                assert not (root / "killed" / "model").exists()
            assert min(attempt.records)[0] == begin + 1
            print(f"attempt {number}: steps {begin + 1} to {max(attempt.records)[0]}")
        left_alone.finish()
    finally:
        for attempt in (left_alone, *attempts):
            attempt.close()

    print(f"{cut_off} of {kills} kills came within a write")
    assert cut_off or not writing
    assert [path.name for path in (root / "killed" / "checkpoints").iterdir()] == [f"step={STEPS:08d}.ckpt"]
    undisturbed = sorted(left_alone.records)
    assert [record[:2] for record in undisturbed] == [
        (s, r) for s in range(1, STEPS + 1) for r in range(ranks)
    ]
    recorded = [record for attempt in attempts for record in attempt.records]
    assert len(recorded) > len(undisturbed), "no step was replayed"
    assert sorted(set(recorded)) == undisturbed  # whatever was replayed is what it was the first time
    assert_no_row_is_lost_or_repeated(undisturbed, ranks)
    weights = [(root / run / "model" / "model.safetensors").read_bytes() for run in ("left_alone", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_twice_ends_as_the_one_left_alone(sources, tmp_path, ranks):
    check(sources, tmp_path, ranks, 2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_ten_times_ends_as_the_one_left_alone(sources, tmp_path, ranks):
    check(sources, tmp_path, ranks, 10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_while_it_writes_checkpoints_ends_as_the_one_left_alone(sources, tmp_path, ranks):
    check(sources, tmp_path, ranks, 6, writing=True)
