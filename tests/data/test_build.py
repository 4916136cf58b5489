import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.data.build import build_dataset, train_tokenizer
from mofi_lightning.data.inspection import verify
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.encoders.tokenizer import Tokenizer
from mofi_lightning.types import InputError


def test_a_pairs_file_becomes_a_data_set_without_entities(emoji_slice, tmp_path, capsys):
    build_dataset(emoji_slice / "validation.parquet", tmp_path / "out")
    info = open_dataset(tmp_path / "out")
    reader = ShardReader(info)
    pairs = pq.read_table(emoji_slice / "validation.parquet").to_pylist()
    assert info.fields == {"image", "text"}
    assert [reader[i][:3] for i in range(len(reader))] == [(p["key"], p["image"], p["text"]) for p in pairs]
    assert "14 rows" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists already"):
        build_dataset(emoji_slice / "validation.parquet", tmp_path / "out")


def test_broken_images_are_left_out_and_counted_and_what_is_written_verifies(emoji_slice, tmp_path, capsys):
    rows = pq.read_table(emoji_slice / "validation.parquet").to_pylist()
    rows[1]["image"] = b"no image"
    rows[2]["image"] = None
    rows[3]["image"] = rows[3]["image"][:300]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    build_dataset(tmp_path / "pairs.parquet", tmp_path / "out")
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
    with pytest.raises(InputError, match=r"none of the 14 images of pairs file .* can be decoded"):
        build_dataset(tmp_path / "pairs.parquet", tmp_path / "none")


def test_a_key_that_comes_twice_is_named(emoji_slice, tmp_path):
    table = pq.read_table(emoji_slice / "validation.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=f"key {table['key'][3].as_py()!r} comes twice"):
        build_dataset(tmp_path / "pairs.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
