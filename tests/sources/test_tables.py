"""Checks of parquet files: whatever is wrong with one, each of its readers says so in one line."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.knowledge_bases.tables import TableReader
from mofi_lightning.curation.pipeline import curate
from mofi_lightning.data.build import build_dataset
from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.evaluation.datasets import at_path
from mofi_lightning.evaluation.embedding.image_streams import open_images
from mofi_lightning.sources.parquet import ParquetSource
from mofi_lightning.sources.tables import KINDS, Kind, check_table, iterate
from mofi_lightning.types import InputError

PAIRS = {name: KINDS[name] for name in ("key", "image", "text")}
# every reader of a pairs file, from the file to its last row
READERS: dict[str, Callable[[Path], object]] = {
    "pairs parquet": lambda path: list(ParquetSource(path).pairs("train")),
    "data build": lambda path: build_dataset(ParquetSource(path), path.parent / "out", num_workers=0),
    "validation": lambda path: [reader[row] for reader in [PairsReader(path)] for row in range(len(reader))],
    "curate": lambda path: curate(path, path.parent / "out", min_images=1),
    "eval": lambda path: at_path(path).open(),
    "embed": lambda path: list(open_images(str(path)).read()),
}


@pytest.fixture
def pairs(emoji_slice: Path, tmp_path: Path) -> Path:
    """A pairs folder of its own; the file of its split train."""
    for name in ("train", "truth", "knowledge_base"):
        (tmp_path / f"{name}.parquet").write_bytes((emoji_slice / f"{name}.parquet").read_bytes())
    return tmp_path / "train.parquet"


def replace(path: Path, column: str, values: pa.Array) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)


def damage_images(path: Path) -> int:
    """Flip bytes at the start of a page of images; number of the rows before its row group."""
    pq.write_table(pq.read_table(path), path, row_group_size=50, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(1).data_page_offset
    content[start : start + 100] = bytes(byte ^ 0xFF for byte in content[start : start + 100])
    path.write_bytes(content)
    return 100


@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_a_file_with_damaged_pages(pairs, name):
    damage_images(pairs)
    with pytest.raises(
        InputError, match=r"train\.parquet cannot be read after row \d+ \(.*\); write"
    ) as error:
        READERS[name](pairs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("pairs parquet", "data build")])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "image",
            ["a.jpg"] * 170,
            r"column 'image' of (pairs )?file .* is string, not .*binary.*(mofi pairs|give)",
        ),
        ("key", [0.5] * 170, r"column 'key' of (pairs )?file .* is double, not .*string.*(mofi pairs|give)"),
    ],
)
def test_every_reader_names_a_column_of_another_type(pairs, name, column, values, message):
    replace(pairs, column, pa.array(values))
    with pytest.raises(InputError, match=message):
        READERS[name](pairs)


@pytest.mark.parametrize("name", ["validation", "curate"])
def test_integer_keys_are_refused_where_keys_are_written(pairs, name):
    replace(pairs, "key", pa.array(range(170)))
    with pytest.raises(InputError, match=r"column 'key' of pairs file .*train\.parquet is int64, not keys"):
        READERS[name](pairs)


def test_integer_keys_serve_where_they_are_only_compared(pairs):
    truth = pq.read_table(pairs.parent / "truth.parquet").to_pylist()
    number = {row["key"]: n for n, row in enumerate(truth)}
    expected = at_path(pairs).open()
    for path in (pairs, pairs.parent / "truth.parquet"):
        replace(path, "key", pa.array([number[key] for key in pq.read_table(path)["key"].to_pylist()]))
    found = at_path(pairs).open()
    assert found.entities == expected.entities
    assert [*found.keys] == [number[key] for key in expected.keys]
    assert [key for key, _ in open_images(str(pairs)).read()] == [str(key) for key in found.keys]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_a_file_without_rows(pairs, name):
    pq.write_table(pq.read_table(pairs).slice(0, 0), pairs)
    with pytest.raises(InputError, match=r"train\.parquet has no rows; remove it or write it anew"):
        READERS[name](pairs)


def test_damage_in_a_knowledge_base_is_named(pairs):
    path = pairs.parent / "knowledge_base.parquet"
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(3).data_page_offset
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"knowledge_base\.parquet cannot be read after row 0"):
        list(TableReader(path).entities())


def test_a_missing_file_is_named_with_the_way_out(tmp_path):
    with pytest.raises(
        InputError, match=r"^no pairs file at .*a\.parquet; give a parquet file as `mofi pairs`"
    ):
        check_table(tmp_path / "a.parquet", "pairs file", PAIRS)
    # a folder of that name is no file either
    with pytest.raises(InputError, match="no pairs file at"):
        check_table(tmp_path, "pairs file", PAIRS)


@pytest.mark.parametrize("content", [b"", b"key,image,text\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"pairs file .*a\.parquet is no parquet file, or damaged") as error:
        check_table(tmp_path / "a.parquet", "pairs file", PAIRS)
    assert "\n" not in str(error.value)


def test_all_missing_columns_are_listed_with_those_there_are(pairs):
    pq.write_table(pq.read_table(pairs).rename_columns(["url", "image", "caption"]), pairs)
    with pytest.raises(
        InputError, match=r"has no column 'key', 'text' \(it has url, image, caption\); rename"
    ):
        check_table(pairs, "pairs file", PAIRS, "rename them")


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        (Kind.KEY, {"string", "dictionary"}),
        (Kind.ANY_KEY, {"string", "dictionary", "integer"}),
        (Kind.TEXT, {"string", "dictionary", "null"}),
        (Kind.TEXTS, {"strings", "nulls", "null"}),
        (Kind.IMAGE, {"binary", "null"}),
    ],
)
def test_a_kind_accepts_the_types_that_hold_it(kind, accepted):
    types = {
        "string": [pa.string(), pa.large_string(), pa.string_view()],
        "dictionary": [pa.dictionary(pa.int32(), pa.string())],
        "integer": [pa.int64(), pa.uint8()],
        "binary": [pa.binary(), pa.large_binary(), pa.binary_view()],
        "strings": [pa.list_(pa.string()), pa.large_list(pa.large_string())],
        "nulls": [pa.list_(pa.null())],
        "null": [pa.null()],
        "other": [pa.float32(), pa.bool_(), pa.list_(pa.int8()), pa.struct([("bytes", pa.binary())])],
    }
    assert {name for name, those in types.items() if all(map(kind.accepts, those))} == accepted
    assert {name for name, those in types.items() if any(map(kind.accepts, those))} == accepted


def test_rows_come_in_batches_of_columns_in_the_order_asked_for(pairs):
    table = pq.read_table(pairs).to_pydict()
    pq.write_table(pq.read_table(pairs), pairs, row_group_size=100)
    batches = list(iterate(pairs, ["text", "key", "text"], 64))
    assert max(len(texts) for texts, _, _ in batches) <= 64
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    assert rows == list(zip(table["text"], table["key"], table["text"], strict=True))
    (last,) = iterate(pairs, ["key"], 1000, row_group=1)
    assert last == [table["key"][100:]]


def test_damage_is_placed_in_the_file_when_one_row_group_is_read(pairs):
    before = damage_images(pairs)
    assert sum(len(keys) for keys, _ in iterate(pairs, ["key", "image"], 25, row_group=1)) == 50
    with pytest.raises(InputError, match=f"cannot be read after row {before} "):
        list(iterate(pairs, ["key", "image"], 25, row_group=2))


def test_a_row_without_a_key_is_named(tmp_path, emoji_slice):
    rows = pq.read_table(emoji_slice / "train.parquet").to_pylist()
    rows[3]["key"] = None
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), pairs)
    with pytest.raises(InputError, match="no key in row 3"):
        build_dataset(ParquetSource(pairs), tmp_path / "data", num_workers=0)
