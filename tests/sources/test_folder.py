"""The folder source: images, the texts beside them, and the classes of their folders."""

import csv
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mofi_lightning import cli
from mofi_lightning.sources.base import Entity, well_formed
from mofi_lightning.sources.folder import FolderSource
from mofi_lightning.sources.write import write_pairs
from mofi_lightning.types import InputError


@pytest.fixture
def images(emoji_slice: Path) -> list[bytes]:
    return pq.read_table(emoji_slice / "test.parquet")["image"].to_pylist()[:6]


@pytest.fixture
def folder(tmp_path: Path, images: list[bytes]) -> Path:
    """Six images on three levels, one with a caption beside it."""
    names = (
        "a.png",
        "b.JPG",
        "birds/black_grouse/c.webp",
        "birds/d.gif",
        "red_apple/e.jpeg",
        "red_apple/f.png",
    )
    for name, image in zip(names, images, strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (tmp_path / "images/red_apple/f.txt").write_text("  an apple, ripe: \u00e4pple\n", encoding="utf-8")
    return tmp_path / "images"


def write_table(folder: Path, suffix: str, rows: list[dict[str, str]]) -> None:
    with (folder / f"metadata.{suffix}").open("w", encoding="utf-8", newline="") as file:
        if suffix == "csv":
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def test_every_image_below_the_folder_is_a_pair_in_the_order_of_paths(folder, images):
    source = FolderSource(folder)
    pairs = list(source.pairs("train"))
    names = [
        "a.png",
        "b.JPG",
        "birds/black_grouse/c.webp",
        "birds/d.gif",
        "red_apple/e.jpeg",
        "red_apple/f.png",
    ]
    assert source.splits == ("train",)
    assert source.count("train") == 6
    assert [pair.key for pair in pairs] == names
    assert [pair.image for pair in pairs] == images
    assert all(pair.entity is None for pair in pairs)


def test_a_text_file_beside_an_image_is_its_text_and_other_images_have_none(folder):
    texts = {pair.key: pair.text for pair in FolderSource(folder).pairs("train")}
    assert texts.pop("red_apple/f.png") == "an apple, ripe: \u00e4pple"
    assert set(texts.values()) == {""}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_gives_the_texts_and_wins_over_the_files_beside(folder, suffix):
    given = {"birds/d.gif": 'a "bird", small\nand loud', "red_apple/f.png": "", "a.png": "\u00e9t\u00e9"}
    rows = [{"file_name": f"./{name}", "licence": "x", "text": text} for name, text in given.items()]
    write_table(folder, suffix, rows)
    texts = {pair.key: pair.text for pair in FolderSource(folder).pairs("train")}
    assert texts == dict.fromkeys(texts, "") | given


def test_a_table_may_leave_images_to_the_text_files(folder):
    write_table(folder, "csv", [{"file_name": "a.png", "text": "A"}])
    texts = {pair.key: pair.text for pair in FolderSource(folder).pairs("train")}
    assert (texts["a.png"], texts["b.JPG"]) == ("A", "")
    assert texts["red_apple/f.png"].startswith("an apple")


def test_tables_of_spreadsheets_with_a_mark_at_the_start_and_empty_lines_are_read(folder):
    (folder / "metadata.csv").write_text("file_name,text\r\na.png,A\r\n\r\n", encoding="utf-8-sig")
    assert next(FolderSource(folder).pairs("train")).text == "A"
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": null}\n\n')
    assert next(FolderSource(folder).pairs("train")).text == ""


def test_the_first_folder_of_the_path_is_the_entity_if_asked_for(folder):
    shown = {pair.key: pair.entity for pair in FolderSource(folder, class_folders=True).pairs("train")}
    assert shown["a.png"] is None
    assert shown["birds/black_grouse/c.webp"] == Entity("birds", "birds")
    assert shown["red_apple/f.png"] == Entity("red_apple", "red apple")


def test_hidden_files_and_folders_that_look_like_images_are_left_out(folder):
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / ".cache").mkdir()
    (folder / ".cache/thumbnail.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    assert FolderSource(folder).count("train") == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", b"image,text\na.png,A\n", r"row 1 of .*csv must have .*file_name and text, .*image"),
        ("metadata.jsonl", b'["a.png", "A"]\n', r"row 1 of .*jsonl must have .*file_name and text"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 3}\n', r"row 1 of .* strings .* 'a.png' and 3"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": "A"}\n{"file', r"cannot be read after row 1 \("),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", r"metadata\.csv cannot be read .*UTF-8"),
        ("metadata.csv", b"file_name,text\na.png,A\n./a.png,B\n", r"csv names 'a\.png' twice"),
        (
            "metadata.csv",
            b"file_name,text\na.png,big, red\n",
            r"row 1 of .*csv has more cells than the header",
        ),
        ("metadata.jsonl", b"[" * 100_000, r"cannot be read after row 0 \("),
        ("metadata.jsonl", b"1" * 5_000, r"cannot be read after row 0 \("),
        ("metadata.csv", b"file_name,text\ng.png,G\n", r"row 1 of .*csv names 'g\.png', which is no image"),
        ("metadata.csv", b"file_name,text\n../images/a.png,A\n", r"names '\.\./images/a\.png', which is no"),
    ],
)
def test_a_bad_table_is_named_with_the_row(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        FolderSource(folder)
    assert "\n" not in str(error.value)


def test_texts_and_names_that_utf8_cannot_hold_become_replacement_characters(folder, tmp_path):
    write_table(folder, "jsonl", [{"file_name": "a.png", "text": "x \ud83d y \udca9"}])
    assert next(FolderSource(folder).pairs("train")).text == "x \ufffd y \ufffd"
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"image")
    write_pairs(FolderSource(folder, class_folders=True), tmp_path / "pairs")
    assert "caf\ufffd.png" in pq.read_table(tmp_path / "pairs" / "train.parquet")["key"].to_pylist()


@pytest.mark.parametrize("text", ["", "plain", "\u00e9 \U0001f4a9", "a\ud800", "\udfffb", "\ud83d\udca9"])
def test_well_formed_text_keeps_all_that_utf8_can_hold(text):
    assert well_formed(text) == "".join(c if c.encode("utf-8", "ignore") else "\ufffd" for c in text)
    well_formed(text).encode()


def test_two_tables_are_refused(folder):
    for suffix in ("csv", "jsonl"):
        write_table(folder, suffix, [{"file_name": "a.png", "text": "A"}])
    with pytest.raises(InputError, match=r"both metadata\.csv and metadata\.jsonl"):
        FolderSource(folder)


def test_a_caption_that_is_not_utf8_is_named(folder):
    (folder / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 text"):
        list(FolderSource(folder).pairs("train"))


def test_a_missing_folder_and_one_without_images_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder at .*missing"):
        FolderSource(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"hold no images; their names must end in \.gif, \.jpeg, \.jpg"):
        FolderSource(tmp_path)


def test_the_command_writes_the_pairs_and_the_truth(folder, tmp_path, images):
    output = tmp_path / "pairs"
    cli.main(["pairs", "folder", "--path", str(folder), "--class_folders", "true", "--output", str(output)])
    assert pq.read_table(output / "train.parquet")["image"].to_pylist() == images
    assert pq.read_table(output / "truth.parquet")["name"].to_pylist() == ["birds"] * 2 + ["red apple"] * 2
