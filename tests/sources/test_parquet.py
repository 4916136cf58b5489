"""The parquet source: the rows of any file, read piece by piece, and one clear line about a bad one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning import cli
from mofi_lightning.sources.base import Pair
from mofi_lightning.sources.parquet import ParquetSource
from mofi_lightning.types import InputError


@pytest.fixture
def splits(emoji_slice: Path, tmp_path: Path) -> Path:
    """A folder of train and test as somebody else might write them."""
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("train", "test"):
        table = pq.read_table(emoji_slice / f"{split}.parquet").rename_columns(["url", "jpg", "caption"])
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=7, compression="zstd")
    return folder


def write(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_file_is_the_split_train_with_its_rows_in_order(emoji_slice):
    source = ParquetSource(emoji_slice / "train.parquet", key="key")
    expected = [Pair(**row) for row in pq.read_table(emoji_slice / "train.parquet").to_pylist()]
    assert source.splits == ("train",)
    assert source.count("train") == len(expected)
    assert list(source.pairs("train")) == expected
    assert not list(source.entities())


def test_each_file_of_a_folder_is_a_split(splits, emoji_slice):
    (splits / ".hidden.parquet").write_bytes(b"")
    (splits / "notes.txt").write_text("")
    source = ParquetSource(splits, image="jpg", text="caption", key="url")
    assert source.splits == ("test", "train")
    for split in source.splits:
        expected = [Pair(**row) for row in pq.read_table(emoji_slice / f"{split}.parquet").to_pylist()]
        assert list(source.pairs(split)) == expected
        assert source.count(split) == len(expected)


def test_without_a_key_column_the_key_is_split_and_row(splits):
    source = ParquetSource(splits, image="jpg", text="caption")
    assert [pair.key for pair in source.pairs("test")] == [f"test/{row}" for row in range(56)]


def test_a_column_called_key_is_the_key_where_it_suits_in_all_files(tmp_path, emoji_slice):
    keys = pq.read_table(emoji_slice / "train.parquet")["key"].to_pylist()
    assert [pair.key for pair in ParquetSource(emoji_slice / "train.parquet").pairs("train")] == keys
    columns = {"image": pa.array([b"i"]), "text": pa.array(["t"])}
    write(tmp_path / "test.parquet", key=pa.array(["k"]), **columns)
    write(tmp_path / "train.parquet", key=pa.array([[1.0]]), **columns)
    assert [pair.key for pair in ParquetSource(tmp_path).pairs("test")] == ["test/0"]


@pytest.mark.parametrize(
    "names",
    [
        ["9.parquet", "10.parquet", "11.parquet"],
        [f"train-{n:05d}-of-00003.parquet" for n in range(3)],
    ],
)
def test_parts_of_a_split_are_one_split_in_their_order(tmp_path, emoji_slice, names):
    table = pq.read_table(emoji_slice / "train.parquet")
    for number, name in enumerate(names):
        pq.write_table(table.slice(number * 60, 60), tmp_path / name)
    source = ParquetSource(tmp_path)
    assert source.splits == ("train",)
    assert source.count("train") == 170
    assert list(source.pairs("train")) == [Pair(**row) for row in table.to_pylist()]
    pq.write_table(table.select(["image", "text"]), tmp_path / names[0])
    keys = [pair.key for pair in ParquetSource(tmp_path).pairs("train")]
    assert keys == [f"train/{row}" for row in range(170 + 110)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a-00000-of-00003", "a-00002-of-00003"], "holds a-00002-of-00003.*, but not a-00001-of-00003"),
        (["a-00000-of-00003", "a-00001-of-00003"], "holds 2 of the 3 parts of 'a'"),
        (["a-00000-of-00001", "a"], r"holds a\.parquet, but not a-00001-of-00001"),
        (["00000", "train"], r"holds 00000\.parquet and train\.parquet, parts of one split"),
    ],
)
def test_a_missing_part_of_a_split_is_named(tmp_path, names, message):
    for name in names:
        write(tmp_path / f"{name}.parquet", image=pa.array([b"i"]), text=pa.array(["t"]))
    with pytest.raises(InputError, match=message):
        ParquetSource(tmp_path)


def test_missing_texts_and_images_are_empty_and_integer_keys_become_strings(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        id=pa.array([7, -1]),
        image=pa.array([None, b"x"], pa.large_binary()),
        text=pa.array([None, "y"]).dictionary_encode(),
    )
    assert list(ParquetSource(path, key="id").pairs("train")) == [Pair("7", b"", ""), Pair("-1", b"x", "y")]


def test_a_row_group_larger_than_the_memory_streams(tmp_path):
    path = tmp_path / "large.parquet"
    table = pa.table({"image": [bytes([n % 251]) * 100_000 for n in range(1_000)], "text": [""] * 1_000})
    # one row group of 100 MB, in pages of 16 rows; uncompressed, as images are
    pq.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=16)
    del table
    assert pq.read_metadata(path).num_row_groups == 1
    before, largest = pa.total_allocated_bytes(), 0
    for pair in ParquetSource(path).pairs("train"):
        assert len(pair.image) == 100_000
        largest = max(largest, pa.total_allocated_bytes() - before)
    # 64 rows are 6.4 MB
    assert largest < 16e6


@pytest.mark.parametrize(
    ("option", "columns", "message"),
    [
        ({"image": "jpg"}, {}, r"has no column 'jpg' \(it has key, image, text\); .*--image"),
        ({"text": "caption"}, {}, r"has no column 'caption' .*--text"),
        ({"key": "url"}, {}, r"has no column 'url' .*--key"),
        ({}, {"image": pa.array(["a.jpg"])}, r"column 'image' of .* is string, not .*binary.*--image"),
        ({}, {"text": pa.array([["a", "b"]])}, r"column 'text' of .* is list.* not .*string.*--text"),
        ({"key": "key"}, {"key": pa.array([0.5])}, r"column 'key' of .* is double, not .*integer.*--key"),
    ],
)
def test_a_missing_or_wrong_column_is_named_with_its_option(tmp_path, option, columns, message):
    good = {"key": pa.array(["k"]), "image": pa.array([b"i"]), "text": pa.array(["t"])}
    path = write(tmp_path / "a.parquet", **(good | columns))
    with pytest.raises(InputError, match=r"a\.parquet") as error:
        ParquetSource(path, **option)
    assert error.match(message)


def test_a_row_without_key_is_named(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        key=pa.array(["a", None]),
        image=pa.array([b"", b""]),
        text=pa.array(["", ""]),
    )
    with pytest.raises(InputError, match=r"a\.parquet has no key in row 1; fill the column 'key'"):
        list(ParquetSource(path, key="key").pairs("train"))


@pytest.mark.parametrize("content", [b"", b"key,image,text\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet is no parquet file, or damaged \(.*\); write") as error:
        ParquetSource(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(tmp_path, emoji_slice):
    content = (emoji_slice / "train.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.parquet is no parquet file, or damaged"):
        ParquetSource(tmp_path / "a.parquet")


def test_damage_within_a_file_is_named_with_the_row_it_stops_at(splits):
    path = splits / "train.parquet"
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(10).column(1).data_page_offset
    content[start : start + 2_000] = bytes(2_000)
    path.write_bytes(content)
    source = ParquetSource(splits, image="jpg", text="caption")
    with pytest.raises(InputError, match=r"train\.parquet cannot be read after row \d+ \(.*\); write"):
        list(source.pairs("train"))


def test_a_text_that_is_not_utf8_is_named(tmp_path):
    latin = pa.array([b"caf\xe9"]).view(pa.string())
    path = write(tmp_path / "a.parquet", image=pa.array([b""]), text=latin)
    with pytest.raises(InputError, match=r"a\.parquet cannot be read after row 0 \(.*utf-8"):
        list(ParquetSource(path).pairs("train"))


def test_files_without_rows_missing_files_and_empty_folders_are_named(tmp_path):
    columns = {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}
    with pytest.raises(InputError, match=r"none\.parquet has no rows"):
        ParquetSource(write(tmp_path / "none.parquet", **columns))
    with pytest.raises(InputError, match=r"nothing at .*missing; give a parquet file or a folder"):
        ParquetSource(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no \*\.parquet"):
        ParquetSource(tmp_path / "empty")


def test_the_command_reads_a_folder_with_columns_of_other_names(splits, emoji_slice, tmp_path, capsys):
    words = ["--image", "jpg", "--text", "caption", "--key", "url", "--output", str(tmp_path / "pairs")]
    cli.main(["pairs", "parquet", "--path", str(splits), *words])
    for split in ("train", "test"):
        written = pq.read_table(tmp_path / "pairs" / f"{split}.parquet")
        assert written.equals(pq.read_table(emoji_slice / f"{split}.parquet"))
    assert "test: 56 pairs" in capsys.readouterr().out


def test_images_as_the_hub_stores_them_are_read(tmp_path):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "2.png"}, None], image)
    pq.write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), tmp_path / "hub.parquet")
    pairs = list(ParquetSource(tmp_path / "hub.parquet").pairs("train"))
    assert [pair.image for pair in pairs] == [b"one", b"", b""]
