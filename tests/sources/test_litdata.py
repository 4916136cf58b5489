"""The litdata source: the rows that litdata itself reads, without decoding, unpickling or waiting."""

import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter
from litdata.types import Image as LitImage
from litdata.types import Jpeg
from PIL import Image

from mofi_lightning import cli
from mofi_lightning.data.schema import Row
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.sources.base import Pair
from mofi_lightning.sources.litdata import LitDataSource
from mofi_lightning.types import InputError


@pytest.fixture(scope="session")
def rows(emoji_slice: Path) -> list[dict[str, Any]]:
    return pq.read_table(emoji_slice / "test.parquet").to_pylist()


def write(folder: Path, records: list[dict[str, Any]], chunk_bytes: int = 20_000) -> Path:
    with warnings.catch_warnings(action="ignore"):  # of chunks a little larger than asked for
        writer = BinaryWriter(str(folder), chunk_bytes=chunk_bytes)
        for index, record in enumerate(records):
            writer.add_item(index, record)
        writer.done()
        writer.merge()
    return folder


def jpeg(image: bytes) -> bytes:
    target = BytesIO()
    Image.open(BytesIO(image)).convert("RGB").save(target, "JPEG")
    return target.getvalue()


def read(folder: Path, **options: str) -> list[Pair]:
    return list(LitDataSource(folder, **options).pairs("train"))


# litdata stores plain values in Arrow files, and others, such as arrays, in a form of its own
FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "arrow": lambda row: row,
    "own": lambda row: {**row, "vector": np.arange(3)},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_that_litdata_reads_in_its_order(rows, tmp_path, form):
    folder = write(tmp_path / "lit", [FORMS[form](row) for row in rows])
    assert len(list(folder.glob("*.bin"))) > 3
    peer = StreamingDataset(str(folder), max_cache_size="1GB", shuffle=False)
    expected = [Pair(row["key"], bytes(row["image"]), row["text"]) for row in peer]
    source = LitDataSource(folder)
    assert source.splits == ("train",)
    assert source.count("train") == 56
    assert list(source.pairs("train")) == expected == [Pair(**row) for row in rows]


def test_encoded_images_of_litdata_come_as_they_were_given(rows, tmp_path):
    images = [jpeg(row["image"]) for row in rows]
    for name, wrapped in {
        "jpeg": [Jpeg(bytes=image) for image in images],
        "image": [LitImage(bytes=image) for image in images],
    }.items():
        records = [{"image": image, "text": row["text"]} for image, row in zip(wrapped, rows, strict=True)]
        assert [pair.image for pair in read(write(tmp_path / name, records))] == images


def test_fields_of_other_names_missing_texts_and_integer_keys(rows, tmp_path):
    records = [
        {"n": -3, "shown": {"bytes": b"a", "path": "x"}, "alt": None},
        {"n": 4, "shown": {"bytes": b"b", "path": "y"}, "alt": "t"},
    ]
    folder = write(tmp_path / "lit", records)
    options = {"image": "shown.bytes", "text": "alt"}
    assert read(folder, **options, key="n") == [Pair("-3", b"a", ""), Pair("4", b"b", "t")]
    assert [pair.key for pair in read(folder, **options)] == ["train/0", "train/1"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "jpg"}, r"lit has no field 'jpg' \(it has key, image, text.*\); .*--image"),
        ({"text": "image"}, r"field 'image' of .*lit is .*, not texts \(string\); .*--text"),
        ({"image": "text"}, r"field 'text' of .*lit is .*, not encoded images \(binary\); .*--image"),
        ({"key": "image"}, r"field 'image' of .*lit is .*, not keys \(string or integer\); .*--key"),
    ],
)
def test_a_missing_or_wrong_field_is_named_with_its_option(rows, tmp_path, form, options, message):
    folder = write(tmp_path / "lit", [FORMS[form](row) for row in rows[:3]])
    with pytest.raises(InputError, match=message):
        LitDataSource(folder, **options)


def test_pixels_are_refused_and_pickles_are_never_opened(rows, tmp_path):
    image = Image.open(BytesIO(rows[0]["image"])).convert("RGB")
    folder = write(tmp_path / "lit", [{"image": image, "text": "t", "object": {1, 2}}])
    with pytest.raises(InputError, match=r"field 'image' of .* is stored as 'pil', not encoded images"):
        LitDataSource(folder)
    trap = tmp_path / "trap"
    records = [{"image": b"i", "text": "t", "object": Trap(str(trap))}]
    assert read(write(tmp_path / "trapped", records)) == [Pair("train/0", b"i", "t")]
    with pytest.raises(InputError, match=r"field 'object' of .* is stored as 'pickle', not texts"):
        LitDataSource(tmp_path / "trapped", text="object")
    assert not trap.exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.file, "w")


def test_folders_of_folders_are_splits(rows, tmp_path):
    for split, part in {"train": rows[:30], "val": rows[30:]}.items():
        write(tmp_path / split, part)
    source = LitDataSource(tmp_path)
    assert source.splits == ("train", "val")
    assert [pair.key for pair in source.pairs("val")] == [row["key"] for row in rows[30:]]


def test_data_sets_of_mofi_are_read_from_either_folder(rows, tmp_path):
    write_dataset((Row(**row) for row in rows), tmp_path / "data")
    expected = [Pair(**row) for row in rows]
    assert read(tmp_path / "data") == expected
    assert read(tmp_path / "data" / "shards") == expected
    # beside other data sets, its name is the split
    write_dataset((Row(**row) for row in rows[:5]), tmp_path / "more")
    assert LitDataSource(tmp_path).splits == ("data", "more")


def test_a_missing_or_cut_chunk_is_named_at_once(rows, tmp_path):
    folder = write(tmp_path / "lit", rows)
    chunk = sorted(folder.glob("*.bin"))[2]
    content = chunk.read_bytes()
    start = time.monotonic()
    chunk.write_bytes(content[:-1])
    with pytest.raises(
        InputError, match=rf"chunk .*{chunk.name} has {len(content) - 1:,} of {len(content):,} b"
    ):
        LitDataSource(folder)
    chunk.unlink()
    with pytest.raises(InputError, match=rf"chunk .*{chunk.name} is missing; copy or write"):
        LitDataSource(folder)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("form", FORMS)
def test_any_damage_gives_one_line_and_never_another_error(rows, tmp_path, form):
    folder = write(
        tmp_path / "lit", [FORMS[form]({**row, "image": b"i" * 40}) for row in rows[:12]], 1_000_000
    )
    (chunk,) = folder.glob("*.bin")
    content = chunk.read_bytes()
    draw = random.Random(0)
    errors = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(content))] = draw.randrange(256)
        chunk.write_bytes(damaged)
        try:
            assert len(read(folder)) == 12
        except InputError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 20


def test_an_index_that_is_not_of_plain_dictionaries_is_refused(rows, tmp_path):
    folder = write(tmp_path / "lit", rows)
    index = json.loads((folder / "index.json").read_text())
    outside = {**index["chunks"][0], "filename": "../chunk.bin"}
    for change, message in (
        ({"config": {**index["config"], "compression": "zstd"}}, "was written with compression 'zstd'"),
        (
            {"config": {**index["config"], "item_loader": "TokensLoader"}},
            r"not of dictionaries .*TokensLoader",
        ),
        ({"config": {**index["config"], "data_format": ["bytes"]}}, "not of dictionaries"),
        ({"config": {**index["config"], "data_spec": "[1]"}}, r"index\.json is damaged, or not written by"),
        ({"chunks": [outside]}, "not of dictionaries"),
        ({"chunks": 3}, r"index\.json is damaged, or not written by litdata"),
    ):
        (folder / "index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(InputError, match=message):
            LitDataSource(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"no folder at .*lit"):
        LitDataSource(folder)
    with pytest.raises(InputError, match=r"nor its folders hold an index\.json"):
        LitDataSource(tmp_path)


def test_the_command_reads_a_folder(rows, tmp_path):
    folder = write(tmp_path / "lit", rows)
    cli.main(["pairs", "litdata", "--path", str(folder), "--output", str(tmp_path / "pairs")])
    assert pq.read_table(tmp_path / "pairs" / "train.parquet").to_pylist() == rows
