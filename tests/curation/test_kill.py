"""Real processes, really killed: what they leave is completed by the next to the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.curation.corpora import copies

from mofi_lightning.data.schema import Row
from mofi_lightning.data.shards import ShardReader, open_dataset

SEED = 20261127
PART_ROWS = 40


@pytest.fixture(scope="module")
def pairs(emoji_slice: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copies(emoji_slice, tmp_path_factory.mktemp("corpus") / "pairs", 6, PART_ROWS)


@pytest.fixture(scope="module")
def start(pairs: Path, scorer: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `mofi curate` in a process group of its own."""

    def popen(output: Path, *options: str) -> subprocess.Popen[str]:
        words = ["curate", str(pairs), str(output), "--scorer", str(scorer), "--min_images", "2"]
        words += ["--part_rows", str(PART_ROWS), "--keep", "0.8", "--max_images", "30", *options]
        command = [sys.executable, "-m", "mofi_lightning", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0)

    return popen


@pytest.fixture(scope="module")
def undisturbed(
    start: Callable[..., subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    finish(start(output))
    return output


def finish(process: subprocess.Popen[str]) -> None:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed


def files(output: Path) -> int:
    """Number of finished files of the stages."""
    found = (name for _, _, names in os.walk(output / "stages") for name in names)
    return sum(not name.endswith((".partial", ".part")) and ".partial" not in name for name in found)


def kill_at(process: subprocess.Popen[str], output: Path, count: int, workers_too: bool) -> bool:
    """Kill the process once there are `count` files; whether it came to that."""
    while files(output) < count:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    if workers_too:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def same(output: Path, expected: Path) -> None:
    for name in ("vocabulary.arrow", "curation.json", "dataset.json"):
        assert (output / name).read_bytes() == (expected / name).read_bytes(), name
    assert labels(output) == labels(expected)
    assert rows(output) == rows(expected)
    keys = [row.key for row in rows(output)]
    assert len(set(keys)) == len(keys)


def labels(output: Path) -> list[tuple[str, str, float]]:
    tables = [pq.read_table(file) for file in sorted((output / "stages" / "labels").glob("*.parquet"))]
    columns = (pa.concat_tables(tables)[name].to_pylist() for name in ("key", "entity", "score"))
    found = sorted(zip(*columns, strict=True))
    assert found
    return found


def rows(output: Path) -> Sequence[Row]:
    reader = ShardReader(open_dataset(output))
    return [reader[index] for index in range(len(reader))]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_curation_killed_ten_times_is_that_of_an_undisturbed_run(
    start: Callable[..., subprocess.Popen[str]], undisturbed: Path, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    moments = sorted(random.Random(SEED).sample(range(1, files(undisturbed)), 10))
    killed = 0
    for number, moment in enumerate(moments):
        killed += kill_at(start(tmp_path / "out"), tmp_path / "out", moment, bool(number % 2))
    print(f"killed {killed} times, at {moments} of {files(undisturbed)} files")
    assert killed >= 8
    finish(start(tmp_path / "out"))
    same(tmp_path / "out", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_curation_after_a_kill_is_that_of_an_undisturbed_run(
    start: Callable[..., subprocess.Popen[str]], undisturbed: Path, tmp_path: Path
) -> None:
    moment = random.Random(SEED + 1).randrange(1, files(undisturbed))
    print(f"seed {SEED + 1}, at {moment} of {files(undisturbed)} files")
    assert kill_at(start(tmp_path / "out"), tmp_path / "out", moment, False)
    finish(start(tmp_path / "out"))
    same(tmp_path / "out", undisturbed)


def ray_workers() -> Iterator[int]:
    """Processes of Ray on this machine that work on a part."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(b"ray::_in_worker"):
                yield int(folder.name)
        except OSError:  # gone
            continue


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_gives_the_same_and_when_a_worker_is_killed(
    start: Callable[..., subprocess.Popen[str]], undisturbed: Path, tmp_path: Path
) -> None:
    engine = ["--engine", "ray", "--num_workers", "2"]
    finish(start(tmp_path / "ray", *engine))
    same(tmp_path / "ray", undisturbed)

    moment = random.Random(SEED + 2).randrange(files(undisturbed) // 3, 2 * files(undisturbed) // 3)
    print(f"seed {SEED + 2}, at {moment} of {files(undisturbed)} files")
    process, output = start(tmp_path / "killed", *engine), tmp_path / "killed"
    killed = 0
    while not killed:
        assert process.poll() is None, process.communicate()[0]
        if files(output) >= moment:
            for worker in ray_workers():
                os.kill(worker, signal.SIGKILL)
                killed += 1
                break
        time.sleep(0.001)
    finish(process)
    same(output, undisturbed)
