import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.data.pairs import PairsReader
from mofi_lightning.types import InputError


def test_rows_are_those_of_the_file_in_any_row_group(emoji_slice, tmp_path):
    table = pq.read_table(emoji_slice / "validation.parquet")
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=4)
    reader = PairsReader(tmp_path / "p.parquet")
    expected = [(t["key"], t["image"], t["text"], (), ()) for t in table.to_pylist()]
    assert len(reader) == len(expected)
    assert [reader[i] for i in (9, 0, 13, 4)] == [expected[i] for i in (9, 0, 13, 4)]
    assert list(reader) == expected


def test_what_is_no_pairs_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no pairs file at"):
        PairsReader(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="is no parquet file"):
        PairsReader(tmp_path / "p.parquet")
    pq.write_table(pa.table({"key": ["a"], "text": ["b"]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="has no column 'image'"):
        PairsReader(tmp_path / "p.parquet")
    empty = pa.table(
        {
            "key": pa.array([], pa.string()),
            "image": pa.array([], pa.binary()),
            "text": pa.array([], pa.string()),
        }
    )
    pq.write_table(empty, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="has no rows"):
        PairsReader(tmp_path / "p.parquet")
