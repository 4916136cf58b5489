from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.stages.base import Stage
from mofi_lightning.curation.stages.parts import check_keys, cut, pairs_files
from mofi_lightning.types import InputError


def write(file: Path, keys: list[str], group: int) -> Path:
    table = pa.table({"key": keys, "image": [b"x"] * len(keys), "text": keys})
    pq.write_table(table, file, row_group_size=group)
    return file


def test_parts_are_row_groups_in_order_and_never_cut_one(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "train-00000-of-00002.parquet", list("abcdefg"), 2),
        write(tmp_path / "train-00001-of-00002.parquet", list("hi"), 5),
    ]
    assert pairs_files(tmp_path, "train") == files
    parts = cut(files, 3)
    assert [(part.number, part.first, part.stop, part.rows) for part in parts] == [
        (0, 0, 2, 4),
        (1, 2, 4, 3),
        (2, 0, 1, 2),
    ]
    read = [key for part in parts for keys, _ in part.read("key", "image") for key in keys]
    assert read == list("abcdefghi")


def test_a_key_of_two_parts_is_found_once_and_not_looked_for_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", "x")
    stage.prepare()
    file = write(tmp_path / "train.parquet", list("abcdea"), 2)
    with pytest.raises(InputError, match=r"key 'a' comes twice in pairs file .*train\.parquet"):
        check_keys(stage, cut([file], 2))
    check_keys(stage, cut([write(file, list("abcdef"), 2)], 2))
    write(file, list("abcdea"), 2)
    check_keys(stage, cut([file], 2))  # the stage's fingerprint is what notices another file


def test_empty_row_groups_leave_no_gap_in_the_numbers(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.parquet", list("abc"), 3), write(tmp_path / "b.parquet", list("de"), 3)]
    table = pq.read_table(files[0])
    with pq.ParquetWriter(files[0], table.schema) as writer:
        for piece in (table, table.slice(0, 0), table.slice(0, 0)):
            writer.write_table(piece)
    parts = cut(files, 3)
    assert [(part.number, part.rows) for part in parts] == [(0, 3), (1, 2)]
