"""The huggingface source: what `datasets` finds, images as they are stored, and one line about the rest."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning import cli
from mofi_lightning.sources.base import Pair
from mofi_lightning.sources.huggingface import HuggingFaceSource
from mofi_lightning.types import InputError


@pytest.fixture(scope="session")
def rows(emoji_slice: Path) -> list[dict[str, Any]]:
    return pq.read_table(emoji_slice / "test.parquet").to_pylist()[:12]


@pytest.fixture
def parquet(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A data set as `push_to_hub` leaves it on the hub: two splits, one in two parts."""
    folder = tmp_path / "parquet"
    (folder / "data").mkdir(parents=True)
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), key=datasets.Value("string")
    )
    for name, part in {
        "train-00000-of-00002": rows[:4],
        "train-00001-of-00002": rows[4:8],
        "test-00000-of-00001": rows[8:],
    }.items():
        stored = [{**row, "image": {"bytes": row["image"], "path": "x.png"}} for row in part]
        datasets.Dataset.from_list(stored, features).to_parquet(folder / "data" / f"{name}.parquet")
    return folder


def images(folder: Path, rows: list[dict[str, Any]], table: bool = True) -> Path:
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        (folder / f"{number:02d}.png").write_bytes(row["image"])
    lines = [{"file_name": f"{n:02d}.png", "text": row["text"]} for n, row in enumerate(rows)]
    if table:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def pairs(rows: list[dict[str, Any]]) -> list[Pair]:
    return [Pair(**row) for row in rows]


def without_keys(split: str, rows: list[dict[str, Any]]) -> list[Pair]:
    return [Pair(f"{split}/{number}", row["image"], row["text"]) for number, row in enumerate(rows)]


def test_parquet_of_the_hub_keeps_splits_bytes_texts_and_keys(parquet, rows):
    source = HuggingFaceSource(str(parquet))
    assert set(source.splits) == {"train", "test"}
    assert list(source.pairs("train")) == pairs(rows[:8])
    assert list(source.pairs("test")) == pairs(rows[8:])


def test_columns_of_other_names_and_plain_bytes(rows, tmp_path):
    columns = {
        "jpg": pa.array([rows[0]["image"], None]),
        "caption": pa.array([None, "t"]),
        "id": pa.array([7, -1]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = HuggingFaceSource(str(tmp_path), image="jpg", text="caption")
    assert list(source.pairs("train")) == [Pair("train/0", rows[0]["image"], ""), Pair("train/1", b"", "t")]
    keyed = HuggingFaceSource(str(tmp_path), image="jpg", text="caption", key="id")
    assert [pair.key for pair in keyed.pairs("train")] == ["7", "-1"]


def test_folders_of_images_are_read_from_their_files(rows, tmp_path):
    folder = images(tmp_path / "images" / "train", rows).parent
    assert list(HuggingFaceSource(str(folder)).pairs("train")) == without_keys("train", rows)


def test_images_in_a_zip_file_are_read(rows, tmp_path):
    folder = images(tmp_path / "loose", rows)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    assert list(HuggingFaceSource(str(tmp_path / "zipped")).pairs("train")) == without_keys("train", rows)


def test_what_save_to_disk_wrote_is_read_with_its_number_of_rows(rows, tmp_path, parquet):
    loaded = datasets.load_dataset(
        "parquet", data_dir=str(parquet / "data"), cache_dir=str(tmp_path / "cache")
    )
    loaded.save_to_disk(tmp_path / "both")
    source = HuggingFaceSource(str(tmp_path / "both"))
    assert (source.count("train"), source.count("test")) == (8, 4)
    assert list(source.pairs("train")) == pairs(rows[:8])
    loaded["test"].save_to_disk(tmp_path / "one")
    alone = HuggingFaceSource(str(tmp_path / "one"))
    assert alone.splits == ("test",)
    assert list(alone.pairs("test")) == pairs(rows[8:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "jpg"}, r"split '\w+' of .* has no column 'jpg' \(it has key, image, text\); .*--image"),
        ({"text": "caption"}, r"has no column 'caption' .*--text"),
        ({"key": "url"}, r"has no column 'url' .*--key"),
        ({"text": "image"}, r"row 0 of split 'train' of .* has a dict as 'image', no string; .*--text"),
        ({"image": "text"}, r"row 0 of split 'train' of .* has a str as 'text', no image; .*--image"),
        (
            {"key": "image"},
            r"row 0 of split 'train' of .* has a dict as 'image', no string or integer; .*--key",
        ),
    ],
)
def test_a_missing_or_wrong_column_is_named_with_its_option(parquet, options, message):
    with pytest.raises(InputError, match=message):
        list(HuggingFaceSource(str(parquet), **options).pairs("train"))


def test_an_image_outside_of_the_data_set_is_never_read(tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (
        tmp_path / "secret",
        folder / ".." / "secret",
        "secret",
        f"{tmp_path}/secret::{folder}/secret",
        "http://127.0.0.1/secret",
    ):
        table = pa.table({"image": [{"bytes": None, "path": str(path)}], "text": ["t"]})
        pq.write_table(table, folder / "train.parquet")
        # where a URL has the look of a path in the working directory
        monkeypatch.chdir(folder if "://" in str(path) else tmp_path)
        with pytest.raises(InputError, match=r"row 0 .* names the image .*secret, which is no part of"):
            list(HuggingFaceSource(str(folder)).pairs("train"))


def test_what_cannot_be_loaded_is_one_line(tmp_path, parquet, capfd):
    (tmp_path / "empty").mkdir()
    code = tmp_path / "code"
    code.mkdir()
    (code / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for path in (
        "no-such-organization/no-such-set",
        str(tmp_path / "no"),
        str(tmp_path / "empty"),
        str(code),
    ):
        with pytest.raises(InputError, match=r"^data set .* cannot be loaded \(\w+: ") as error:
            HuggingFaceSource(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "empty" / "train.jsonl").write_text('{"image": null, "text": "\\ud800"}')
    with pytest.raises(InputError, match=r"cannot be loaded .*surrogate pair in string is invalid"):
        HuggingFaceSource(str(tmp_path / "empty"))
    file = parquet / "data" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be read to the end of split 'train' \(") as error:
        list(HuggingFaceSource(str(parquet)).pairs("train"))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_without_the_package_the_command_to_install_it_is_named(tmp_path):
    code = """
import sys
sys.modules["datasets"] = None
from mofi_lightning.cli import main
main(["pairs", "huggingface", "--path", "x", "--output", sys.argv[1]])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "mofi: error: data sets of Hugging Face need the package datasets: "
        "pip install 'mofi-lightning[huggingface]'\n"
    )


def test_the_command_reads_a_folder(parquet, rows, tmp_path, capfd):
    words = ["--path", str(parquet), "--output", str(tmp_path / "pairs")]
    cli.main(["pairs", "huggingface", *words])
    assert pq.read_table(tmp_path / "pairs" / "train.parquet").to_pylist() == rows[:8]
    assert pq.read_table(tmp_path / "pairs" / "test.parquet").to_pylist() == rows[8:]
