"""Writing a pairs folder: what it holds, what refuses, and what survives an interruption."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mofi_lightning.sources.base import Entity, Pair, Source
from mofi_lightning.sources.write import write_pairs
from mofi_lightning.types import InputError

FILES = ("train", "validation", "test", "truth", "knowledge_base")


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def truth(folder: Path) -> list[tuple[object, ...]]:
    return sorted(tuple(row.values()) for row in rows(folder, "truth"))


class Given(Source):
    """A source of the given pairs."""

    def __init__(self, **pairs: list[Pair]) -> None:
        self.given = pairs

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.given)

    def pairs(self, split: str) -> Iterator[Pair]:
        return iter(self.given[split])


def test_the_folder_holds_exactly_what_the_source_gives(slice_source, emoji_slice, tmp_path, capsys):
    write_pairs(slice_source, tmp_path / "new" / "pairs")
    written = tmp_path / "new" / "pairs"
    assert {path.name for path in written.iterdir()} == {f"{name}.parquet" for name in FILES}
    for name in FILES:
        assert rows(written, name) == rows(emoji_slice, name)
        assert pq.read_schema(written / f"{name}.parquet").equals(
            pq.read_schema(emoji_slice / f"{name}.parquet")
        )
    assert "train: 170 pairs" in capsys.readouterr().out


def test_a_source_without_truth_and_entities_gives_only_the_pairs(tmp_path):
    write_pairs(Given(train=[Pair("a", b"image", ""), Pair("b", b"", "text")]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
    assert rows(tmp_path, "train") == [
        {"key": "a", "image": b"image", "text": ""},
        {"key": "b", "image": b"", "text": "text"},
    ]


def test_only_images_whose_entity_is_known_are_in_the_truth(tmp_path):
    pairs = [Pair("a", b"", "", Entity("Q1", "one", ("uno",), "a number")), Pair("b", b"", "")]
    write_pairs(Given(train=pairs), tmp_path)
    expected = {"key": "a", "split": "train", "entity": "Q1", "name": "one", "description": "a number"}
    assert rows(tmp_path, "truth") == [expected]


def test_row_groups_stay_small_in_rows_and_in_bytes(tmp_path):
    small = [Pair(f"small/{n}", b"x", "") for n in range(2_500)]
    large = [Pair(f"large/{n}", bytes(12 * 2**20), "") for n in range(7)]
    write_pairs(Given(small=small, large=large), tmp_path)

    def sizes(split: str) -> list[int]:
        metadata = pq.read_metadata(tmp_path / f"{split}.parquet")
        return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]

    assert sizes("small") == [1_000, 1_000, 500]
    assert sizes("large") == [3, 3, 1]
    assert [row["key"] for row in rows(tmp_path, "small")] == [pair.key for pair in small]


def test_a_repeated_key_is_refused_within_a_split_and_across_splits(tmp_path):
    twice = [Pair("a", b"", ""), Pair("a", b"", "")]
    with pytest.raises(InputError, match=r"key 'a' comes twice \(train, train\)"):
        write_pairs(Given(train=twice), tmp_path / "within")
    assert not list((tmp_path / "within").iterdir())

    across = Given(train=twice[:1], test=[Pair("b", b"", ""), *twice[:1]])
    for _ in "the first run and the one that finds train written":
        with pytest.raises(InputError, match=r"key 'a' comes twice \(train, test\)"):
            write_pairs(across, tmp_path / "across")
        assert [path.name for path in (tmp_path / "across").iterdir()] == ["train.parquet"]


def test_a_split_without_pairs_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="split 'test' of the source has no pairs"):
        write_pairs(Given(train=[Pair("a", b"", "")], test=[]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]


def test_an_output_that_is_a_file_is_refused(tmp_path, slice_source):
    (tmp_path / "pairs").write_text("")
    with pytest.raises(InputError, match="pairs is a file"):
        write_pairs(slice_source, tmp_path / "pairs")


def test_a_damaged_split_of_an_earlier_run_is_named(tmp_path, slice_source):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match=r"train\.parquet is no pairs file .*remove it"):
        write_pairs(slice_source, tmp_path)


@pytest.mark.parametrize("broken", ["train", "validation", "test"])
def test_after_an_interruption_a_second_run_writes_only_what_is_missing(
    slice_source, emoji_slice, tmp_path, broken
):
    slice_source.broken = broken
    with pytest.raises(ConnectionError):
        write_pairs(slice_source, tmp_path)
    done = slice_source.splits[: slice_source.splits.index(broken)]
    assert {path.name for path in tmp_path.glob("[!.]*")} == {
        "knowledge_base.parquet",
        *(f"{split}.parquet" for split in done),
    }

    slice_source.broken, slice_source.asked = "", []
    write_pairs(slice_source, tmp_path)
    assert slice_source.asked == list(slice_source.splits[len(done) :])
    for name in ("train", "validation", "test", "knowledge_base"):
        assert rows(tmp_path, name) == rows(emoji_slice, name)
    assert truth(tmp_path) == truth(emoji_slice)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("removed", FILES[:3])
def test_a_removed_split_is_written_again_with_its_truth_and_the_others_stay(
    slice_source, emoji_slice, tmp_path, removed
):
    write_pairs(slice_source, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    (tmp_path / f"{removed}.parquet").unlink()
    slice_source.asked = []
    write_pairs(slice_source, tmp_path)
    assert slice_source.asked == [removed]
    assert rows(tmp_path, removed) == rows(emoji_slice, removed)
    assert truth(tmp_path) == truth(emoji_slice)
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {removed, "truth"}


def test_a_removed_knowledge_base_is_written_again(slice_source, emoji_slice, tmp_path):
    write_pairs(slice_source, tmp_path)
    (tmp_path / "knowledge_base.parquet").unlink()
    slice_source.asked = []
    write_pairs(slice_source, tmp_path)
    assert rows(tmp_path, "knowledge_base") == rows(emoji_slice, "knowledge_base")
    assert slice_source.asked == []


def test_a_complete_folder_is_left_alone(slice_source, tmp_path, capsys):
    write_pairs(slice_source, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    slice_source.asked = []
    write_pairs(slice_source, tmp_path)
    assert slice_source.asked == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "is complete and stays as it is" in " ".join(capsys.readouterr().out.split())


WRITER = """
import sys
from pathlib import Path
from mofi_lightning.sources.base import Pair, Source
from mofi_lightning.sources.write import write_pairs

class Endless(Source):
    splits = ("train", "test")
    def pairs(self, split):
        for n in range(2_000 if split == "train" else 10**9):
            yield Pair(f"{split}/{n}", bytes(1_000), "")
            if split == "test" and n == 5_000:
                print("in the middle", flush=True)

write_pairs(Endless(), Path(sys.argv[1]))
"""


def test_a_killed_writer_leaves_whole_files_only_and_the_next_run_completes_them(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["train.parquet"]
    assert list(tmp_path.glob(".test*")), "the writer was not in the middle of test"
    assert len(rows(tmp_path, "train")) == 2_000

    write_pairs(Given(train=[], test=[Pair("test/0", b"image", "text")]), tmp_path)
    assert rows(tmp_path, "test") == [{"key": "test/0", "image": b"image", "text": "text"}]
    assert {path.name for path in tmp_path.iterdir()} == {"train.parquet", "test.parquet"}
