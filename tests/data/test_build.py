import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.data.build import build_dataset, train_tokenizer
from mofi_lightning.data.inspection import verify
from mofi_lightning.data.keys import SeenKeys
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.sources.parquet import ParquetSource
from mofi_lightning.types import InputError


def test_a_pairs_file_becomes_a_data_set_without_entities(emoji_slice, tmp_path, capsys):
    build_dataset(ParquetSource(emoji_slice / "validation.parquet"), tmp_path / "out")
    info = open_dataset(tmp_path / "out")
    reader = ShardReader(info)
    pairs = pq.read_table(emoji_slice / "validation.parquet").to_pylist()
    assert info.fields == {"image", "text"}
    assert [reader[i][:3] for i in range(len(reader))] == [(p["key"], p["image"], p["text"]) for p in pairs]
    assert "14 rows" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists already"):
        build_dataset(ParquetSource(emoji_slice / "validation.parquet"), tmp_path / "out")


def test_broken_images_are_left_out_and_counted_and_what_is_written_verifies(emoji_slice, tmp_path, capsys):
    rows = pq.read_table(emoji_slice / "validation.parquet").to_pylist()
    rows[1]["image"] = b"no image"
    rows[2]["image"] = None
    rows[3]["image"] = rows[3]["image"][:300]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "left out 2: no JPEG, PNG, GIF or WebP image",
        "left out 1: damaged PNG image",
        f"11 rows -> {tmp_path / 'out'}",
    ]
    assert captured.err == ""
    verify(tmp_path / "out")
    assert "11 rows are intact" in capsys.readouterr().out
    for row in rows:
        row["image"] = b""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=r"none of the 14 images of split .train. .* can be decoded"):
        build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "none")


def test_a_key_that_comes_twice_is_named(emoji_slice, tmp_path):
    table = pq.read_table(emoji_slice / "validation.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=f"key {table['key'][3].as_py()!r} comes twice"):
        build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seen_keys_agree_with_a_set():
    generator = random.Random(1)
    seen, known = SeenKeys(), set()
    for _ in range(300):
        keys = [f"key-{generator.randrange(10**6)}" for _ in range(generator.randrange(8))]
        repeated = next((k for i, k in enumerate(keys) if k in known or k in keys[:i]), None)
        assert seen.add(keys) == repeated
        if repeated is None:
            known.update(keys)
    assert len(known) > 500


def contents(dataset: Path) -> dict[str, bytes]:
    return {str(f.relative_to(dataset)): f.read_bytes() for f in sorted(dataset.rglob("*")) if f.is_file()}


def test_any_number_of_workers_writes_the_same_bytes(emoji_slice, tmp_path, monkeypatch):
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 20_000)
    source = ParquetSource(emoji_slice / "train.parquet")
    build_dataset(source, tmp_path / "none", num_workers=0)
    build_dataset(source, tmp_path / "two", num_workers=2)
    assert len(ShardReader(open_dataset(tmp_path / "two")).chunk_sizes) > 3
    assert contents(tmp_path / "two") == contents(tmp_path / "none")
    assert {p.name for p in tmp_path.iterdir()} == {"none", "two"}


SCRIPT = """
import sys
from pathlib import Path
from mofi_lightning.data import writing
from mofi_lightning.data.build import build_dataset
from mofi_lightning.sources.base import Pair, Source
from mofi_lightning.sources.parquet import ParquetSource

writing.CHUNK_BYTES = 20_000
build_dataset(ParquetSource(Path(sys.argv[1])), Path(sys.argv[2]), num_workers=2)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_killed_build_goes_on_where_it_was_and_no_process_survives(emoji_slice, tmp_path):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed}")
    table = pq.read_table(emoji_slice / "train.parquet")
    many = [table.set_column(0, "key", [[f"{n}/{k}" for k in table["key"].to_pylist()]]) for n in range(20)]
    pairs, output = tmp_path / "pairs.parquet", tmp_path / "out"
    pq.write_table(pa.concat_tables(many), pairs)
    words = [sys.executable, "-c", SCRIPT, str(pairs), str(output)]
    unfinished = tmp_path / ".out.partial" / "parts"
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    moment = random.Random(seed).randrange(1, 12)
    while len(list(unfinished.glob("[0-9]*"))) < moment:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    deadline = time.monotonic() + 10
    while True:  # the workers end with their parent
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline, "a worker survived"
        time.sleep(0.05)
    process.communicate()
    again = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "parts were there already, of an interrupted build" in again.stdout
    assert open_dataset(output).rows == 20 * table.num_rows
    build = subprocess.run([*words[:-1], str(tmp_path / "anew")], capture_output=True, timeout=60, check=True)
    assert b"already" not in build.stdout
    assert contents(output) == contents(tmp_path / "anew")


def interrupted(source: ParquetSource, output: Path, operation: int) -> bool:
    """Build in a process that ends just before its n-th change of a file; whether it came to that."""
    child = os.fork()
    if child == 0:
        try:
            left = operation

            def stopping(call):
                def counted(*args, **kwargs):
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os._exit(7)
                    return call(*args, **kwargs)

                return counted

            for owner, name in (
                *((os, name) for name in ("replace", "rename", "unlink", "rmdir", "mkdir")),
                *((Path, name) for name in ("write_text", "write_bytes")),
                (shutil, "rmtree"),
            ):
                setattr(owner, name, stopping(getattr(owner, name)))
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                build_dataset(source, output, num_workers=0)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_build_that_ends_at_any_change_of_a_file_is_completed_by_the_next(
    emoji_slice, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 10_000)
    source = ParquetSource(emoji_slice / "validation.parquet")
    build_dataset(source, tmp_path / "whole", num_workers=0)
    expected = contents(tmp_path / "whole")
    operation, complete = 0, 0
    while interrupted(source, output := tmp_path / "out", operation := operation + 1):
        if output.exists():
            complete += 1
        else:
            build_dataset(source, output, num_workers=0)
        assert contents(output) == expected, f"ended before operation {operation}"
        assert {p.name for p in tmp_path.iterdir()} <= {"whole", "out", ".out.part"}
        shutil.rmtree(output)
    assert contents(output) == expected
    assert operation > 30 and complete <= 1
    assert "parts were there already" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "lost", "notes"])
def test_a_part_that_was_damaged_since_is_written_again(emoji_slice, tmp_path, monkeypatch, damage):
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 10_000)
    table = pq.read_table(emoji_slice / "validation.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="comes twice"):
        build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "out", num_workers=0)
    part = tmp_path / ".out.partial" / "parts" / "000001"
    (chunk,) = part.glob("*.bin")
    if damage == "cut":
        os.truncate(chunk, 100)
    elif damage == "lost":
        chunk.unlink()
    else:
        os.truncate(part / "notes.json", 0)
    source = ParquetSource(emoji_slice / "validation.parquet")
    build_dataset(source, tmp_path / "out", num_workers=0)
    build_dataset(source, tmp_path / "whole", num_workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_source_that_changed_since_a_build_was_interrupted_is_read_anew(emoji_slice, tmp_path, monkeypatch):
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 20_000)
    table = pq.read_table(emoji_slice / "train.parquet")
    broken = pa.concat_tables([table, table.slice(0, 1)])
    pq.write_table(broken, tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="comes twice"):
        build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "out", num_workers=0)
    texts = ["another text", *table["text"].to_pylist()[1:]]
    pq.write_table(table.set_column(2, "text", [texts]), tmp_path / "pairs.parquet")
    build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "out", num_workers=0)
    reader = ShardReader(open_dataset(tmp_path / "out"))
    assert [reader[i].text for i in range(len(reader))] == texts
    build_dataset(ParquetSource(tmp_path / "pairs.parquet"), tmp_path / "anew", num_workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


def test_splits_are_chosen_by_name(emoji_slice, tmp_path):
    shutil.copy(emoji_slice / "validation.parquet", tmp_path / "a.parquet")
    shutil.copy(emoji_slice / "validation.parquet", tmp_path / "b.parquet")
    with pytest.raises(InputError, match="several splits; choose one by --split: a, b"):
        build_dataset(ParquetSource(tmp_path), tmp_path / "out")
    with pytest.raises(InputError, match="no 'c' splits"):
        build_dataset(ParquetSource(tmp_path), tmp_path / "out", split="c")
    build_dataset(ParquetSource(tmp_path), tmp_path / "out", split="b", num_workers=0)
    assert open_dataset(tmp_path / "out").rows == 14


def test_a_tokenizer_learns_the_texts_and_the_knowledge_base(emoji_slice, tmp_path):
    train_tokenizer(emoji_slice, tmp_path / "folder", vocab_size=1500)
    train_tokenizer(emoji_slice, tmp_path / "file.json", vocab_size=1500)
    tokenizer = Tokenizer.load(tmp_path / "folder")
    assert tokenizer.to_json() == Tokenizer.load(tmp_path / "file.json").to_json()
    names = pq.read_table(emoji_slice / "knowledge_base.parquet")["name"].to_pylist()
    shutil.copytree(emoji_slice, tmp_path / "pairs")
    (tmp_path / "pairs" / "knowledge_base.parquet").unlink()
    train_tokenizer(tmp_path / "pairs", tmp_path / "texts_only.json", vocab_size=1500)
    texts_only = Tokenizer.load(tmp_path / "texts_only.json")

    def tokens(t: Tokenizer) -> int:
        return int(t(names, 64).attention_mask.sum())

    assert tokens(tokenizer) < tokens(texts_only)


def test_a_folder_without_pairs_is_named(tmp_path):
    with pytest.raises(InputError, match=r"train\.parquet does not exist"):
        train_tokenizer(tmp_path, tmp_path / "t.json")
