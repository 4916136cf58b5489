import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mofi_lightning.data.inspection import verify
from mofi_lightning.data.schema import Row
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.types import InputError


def flip(chunk: Path, content: bytes) -> None:
    """Flip one bit in the middle of `content`, wherever it is in the file."""
    data = bytearray(chunk.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 1
    chunk.write_bytes(data)


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def rows_of(dataset: Path) -> list[Row]:
    reader = ShardReader(open_dataset(dataset))
    return [reader[index] for index in range(len(reader))]


def complaint(dataset: Path) -> str:
    with pytest.raises(InputError) as caught:
        verify(dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def dataset(i2e, tmp_path) -> Path:
    """A copy of a data set of three chunks, to be damaged."""
    return Path(shutil.copytree(i2e, tmp_path / "dataset"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_intact_data_set_verifies(i2e, rows, capsys, num_workers):
    verify(i2e, num_workers=num_workers)
    assert capsys.readouterr().out == f"{i2e}: {len(rows)} rows are intact\n"


def test_every_flipped_byte_in_a_row_is_found(plain, rows, tmp_path):
    for field in (rows[5].image, rows[5].text.encode(), rows[5].key.encode()):
        dataset = Path(shutil.copytree(plain, tmp_path / "copy"))
        flip(dataset / "shards" / "chunk-000000.bin", field)
        message = complaint(dataset)
        assert "1 of 50 rows are bad: row 5 '" in message
        assert "in chunk-000000.bin (checksum)" in message
        shutil.rmtree(dataset)


def test_a_flipped_byte_in_an_image_is_named_and_left_out_of_the_copy(dataset, rows, tmp_path, capsys):
    first_rows = ShardReader(open_dataset(dataset)).first_rows
    bad = int(first_rows[1]) + 3
    flip(dataset / "shards" / "chunk-000001.bin", rows[bad].image)
    named = f"row {bad} '{rows[bad].key}' in chunk-000001.bin (checksum)"
    assert named in complaint(dataset)
    assert capsys.readouterr().out == f"{named}\n"
    before = contents(dataset)
    verify(dataset, clean=tmp_path / "clean")
    assert f"left out 1 of {len(rows)} rows; {len(rows) - 1} rows" in capsys.readouterr().out
    verify(tmp_path / "clean")
    assert rows_of(tmp_path / "clean") == rows[:bad] + rows[bad + 1 :]
    assert open_dataset(tmp_path / "clean").vocabulary == open_dataset(dataset).vocabulary
    assert contents(dataset) == before


@pytest.mark.parametrize(("damage", "fault"), [("cut", "has 1000 of"), ("remove", "is missing")])
def test_a_lost_chunk_is_named_and_the_rest_is_checked_and_kept(dataset, rows, tmp_path, damage, fault):
    first, stop = ShardReader(open_dataset(dataset)).first_rows[1:3].tolist()
    chunk = dataset / "shards" / "chunk-000001.bin"
    if damage == "cut":
        os.truncate(chunk, 1000)
    else:
        chunk.unlink()
    flip(dataset / "shards" / "chunk-000002.bin", rows[stop].image)
    message = complaint(dataset)
    assert f"{stop - first + 1} of {len(rows)} rows are bad: chunk {chunk} {fault}" in message
    assert f"(its {stop - first} rows are lost), row {stop} '{rows[stop].key}'" in message
    verify(dataset, clean=tmp_path / "clean")
    verify(tmp_path / "clean")
    assert rows_of(tmp_path / "clean") == rows[:first] + rows[stop + 1 :]


def test_an_id_beyond_the_vocabulary_is_named_and_left_out(tmp_path, rows, vocabulary):
    last = rows[2]._replace(key="beyond", entities=(0, len(vocabulary) - 1), scores=(1.0, 0.5))
    inside = [row for row in rows if len(vocabulary) - 1 not in row.entities]
    write_dataset([*inside[:3], last, *inside[3:]], tmp_path / "d", vocabulary)
    shorter = [c[:-1] for c in (vocabulary.ids, vocabulary.names, vocabulary.descriptions, vocabulary.counts)]
    type(vocabulary).from_columns(*shorter).save(tmp_path / "d")
    classes = len(vocabulary) - 1
    named = f"row 3 'beyond' in chunk-000000.bin (class id {classes} beyond the {classes} entities)"
    assert named in complaint(tmp_path / "d")
    verify(tmp_path / "d", clean=tmp_path / "clean")
    verify(tmp_path / "clean")
    assert rows_of(tmp_path / "clean") == inside
    assert list(open_dataset(tmp_path / "clean").vocabulary.ids) == shorter[0]


def test_undecodable_images_and_keys_used_twice_are_named_with_their_reasons(tmp_path, rows, vocabulary):
    cut = rows[1]._replace(image=rows[1].image[: len(rows[1].image) // 2])
    bad_image = rows[2]._replace(key="bad\nimage", image=b"none")
    again = rows[0]._replace(text="another text")
    write_dataset([rows[0], cut, bad_image, again, rows[1], rows[0]], tmp_path / "d", vocabulary)
    message = complaint(tmp_path / "d")
    assert "4 of 6 rows are bad" in message
    assert f"row 1 '{rows[1].key}' in chunk-000000.bin (image: damaged" in message
    assert (
        r"row 2 'bad\nimage' in chunk-000000.bin (image: no JPEG, PNG, GIF or WebP image: 4 bytes)" in message
    )
    assert f"row 3 '{rows[0].key}' in chunk-000000.bin (key used twice)" in message
    verify(tmp_path / "d", clean=tmp_path / "clean")
    assert rows_of(tmp_path / "clean") == [rows[0], rows[1]]  # whose key only a bad row had used


def test_rows_that_were_replaced_betray_themselves_by_the_fingerprint(plain, rows, tmp_path):
    others = [row._replace(entities=(), scores=()) for row in reversed(rows[:50])]
    write_dataset(others, tmp_path / "others")
    shutil.copy(plain / "dataset.json", tmp_path / "others")
    assert "dataset.json" in complaint(tmp_path / "others")
    verify(tmp_path / "others", clean=tmp_path / "clean")
    verify(tmp_path / "clean")
    assert rows_of(tmp_path / "clean") == others


def test_a_lost_vocabulary_is_named_and_no_clean_copy_is_made(dataset, rows, tmp_path, capsys):
    (dataset / "vocabulary.arrow").unlink()
    flip(dataset / "shards" / "chunk-000000.bin", rows[1].image)
    message = complaint(dataset)
    assert "no vocabulary at" in message and f"row 1 '{rows[1].key}'" in message
    with pytest.raises(InputError, match=r"no clean copy of .* can be made: no vocabulary at"):
        verify(dataset, clean=tmp_path / "clean")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_an_existing_folder_is_refused_before_anything_is_checked(dataset, tmp_path, capsys):
    flip(dataset / "shards" / "chunk-000000.bin", b"PNG")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for output in (tmp_path / "there", dataset):
        with pytest.raises(InputError, match="exists already"):
            verify(dataset, clean=output)
    assert capsys.readouterr().out == ""


def test_a_data_set_without_an_intact_row_makes_no_copy(tmp_path):
    write_dataset([Row("a", b"none", ""), Row("b", b"", "")], tmp_path / "d")
    with pytest.raises(InputError, match=r"none of the 2 rows of .* is intact"):
        verify(tmp_path / "d", clean=tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_ten_faults_are_named_in_one_line_and_all_are_listed(tmp_path, capsys):
    write_dataset((Row(f"key {n}", b"none", "") for n in range(25)), tmp_path / "d")
    message = complaint(tmp_path / "d")
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in listed] == [f"row {n} 'key {n}'" for n in range(25)]
    assert "25 of 25 rows are bad" in message and "'key 9'" in message and "'key 10'" not in message
    assert ", ...;" in message and "--clean FOLDER" in message


@pytest.mark.slow
def test_the_command_lists_into_a_file_even_while_a_terminal_shows_a_bar(tmp_path):
    write_dataset((Row(f"key {n}", b"none", "") for n in range(3)), tmp_path / "d")
    terminal, slave = os.openpty()
    command = [sys.executable, "-m", "mofi_lightning", "data", "verify", str(tmp_path / "d")]
    with (tmp_path / "bad.txt").open("w") as listing:
        process = subprocess.Popen(command, stdout=listing, stderr=slave)
    os.close(slave)
    shown = b""
    with suppress(OSError):  # the terminal's end once the process has closed its own
        while received := os.read(terminal, 4096):
            shown += received
    os.close(terminal)
    assert process.wait() == 2
    assert (tmp_path / "bad.txt").read_text().count("\n") == 3
    assert b"verifying" in shown and b"3 of 3 rows are bad" in shown


def test_dataset_json_must_count_the_rows_of_the_chunks(dataset, rows):
    about = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**about, "rows": about["rows"] + 1}))
    assert f"holds {len(rows)} rows, its dataset.json says {len(rows) + 1}" in complaint(dataset)
