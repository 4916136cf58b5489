import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mofi_lightning.data.schema import Row, checksum
from mofi_lightning.data.shards import CorruptRow, ShardReader, open_dataset
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import unfinished, write_dataset
from mofi_lightning.types import InputError


def test_every_row_comes_back_byte_for_byte_in_order(i2e, rows):
    reader = ShardReader(open_dataset(i2e))
    assert len(reader) == len(rows)
    assert len(reader.chunk_sizes) > 1
    assert [reader[i] for i in range(len(reader))] == rows
    assert type(reader[0].image) is bytes


def test_the_info_names_what_rows_carry(i2e, plain, vocabulary):
    assert open_dataset(i2e).fields == {"image", "text", "entity"}
    assert open_dataset(i2e).vocabulary == vocabulary
    assert open_dataset(plain).fields == {"image", "text"}
    assert open_dataset(plain).vocabulary is None


def test_an_existing_data_set_is_not_overwritten(plain, rows):
    before = (plain / "dataset.json").stat()
    with pytest.raises(InputError, match="exists already"):
        write_dataset(rows[:1], plain)
    assert (plain / "dataset.json").stat() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("k", b"", "", (3,), (0.5,)), "vocabulary has 0"),
        (Row("k", b"", "", (), (0.5,)), "0 entities but 1 scores"),
        (None, "no rows"),
    ],
)
def test_a_writer_that_fails_leaves_nothing(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        write_dataset([row] if row else [], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_data_set_and_the_next_one_succeeds(tmp_path, rows):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mofi_lightning.data import writing\n"
        "from mofi_lightning.data.schema import Row\n"
        "writing.CHUNK_BYTES = 2000\n"
        "def rows():\n"
        "    for i in range(10**6):\n"
        "        if i == 50: print('midway', flush=True)\n"
        "        if i > 50: time.sleep(0.01)\n"
        "        yield Row(str(i), b'x' * 500, 'text')\n"
        "writing.write_dataset(rows(), Path(sys.argv[1]))\n"
    )
    output = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "midway\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not output.exists()
    with pytest.raises(InputError, match="is no data set"):
        open_dataset(tmp_path / ".out.partial")
    write_dataset((row._replace(entities=(), scores=()) for row in rows[:3]), output)
    assert open_dataset(output).rows == 3
    assert list(tmp_path.iterdir()) == [output]


def test_reading_leaves_no_cache_behind(plain, tmp_path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mofi_lightning.data.shards import ShardReader, open_dataset\n"
        "reader = ShardReader(open_dataset(Path(sys.argv[1])))\n"
        "print([reader[i].key for i in range(len(reader))][-1])\n"
    )
    before = sorted(plain.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-c", script, str(plain)],
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.count("\n") == 1 and result.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert sorted(plain.rglob("*")) == before


def copy_of(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def test_a_flipped_byte_is_found_where_it_is(plain, rows, tmp_path):
    dataset = copy_of(plain, tmp_path)
    (chunk,) = (dataset / "shards").glob("*.bin")
    data = bytearray(chunk.read_bytes())
    data[data.index(rows[7].image) + len(rows[7].image) // 2] ^= 1
    chunk.write_bytes(data)
    reader = ShardReader(open_dataset(dataset))
    with pytest.raises(CorruptRow, match=rows[7].key):
        reader[7]
    assert [reader[i] for i in (6, 8)] == [rows[i]._replace(entities=(), scores=()) for i in (6, 8)]


def test_garbage_in_the_structure_is_a_corrupt_row_whatever_litdata_makes_of_it(plain, rows, tmp_path):
    dataset = copy_of(plain, tmp_path)
    (chunk,) = (dataset / "shards").glob("*.bin")
    data = bytearray(chunk.read_bytes())
    start = data.index(rows[7].image)
    data[start - 60 : start] = b"\xff" * 60
    chunk.write_bytes(data)
    with pytest.raises(CorruptRow):
        ShardReader(open_dataset(dataset))[7]


def test_a_chunk_in_the_place_of_another_is_found(i2e, rows, tmp_path):
    dataset = copy_of(i2e, tmp_path)
    shards = dataset / "shards"
    index = json.loads((shards / "index.json").read_text())
    first, second = index["chunks"][:2]
    shutil.copy(shards / first["filename"], shards / second["filename"])
    index["chunks"][1] = {**first, "filename": second["filename"]}
    (shards / "index.json").write_text(json.dumps(index))
    about = json.loads((dataset / "dataset.json").read_text())
    about["rows"] += first["chunk_size"] - second["chunk_size"]
    (dataset / "dataset.json").write_text(json.dumps(about))
    reader = ShardReader(open_dataset(dataset))
    size = first["chunk_size"]
    assert reader[0] == rows[0] and reader[size - 1] == rows[size - 1]
    for row in (size, 2 * size - 1):
        with pytest.raises(CorruptRow):
            reader[row]


def test_the_same_rows_in_other_chunks_or_with_other_names_are_another_data_set(
    rows, vocabulary, tmp_path, monkeypatch
):
    def fingerprint(name: str, entities: EntityVocabulary) -> str:
        write_dataset(rows[:40], tmp_path / name, entities)
        return open_dataset(tmp_path / name).fingerprint

    ids, counts = list(vocabulary.ids), list(vocabulary.counts)
    renamed = EntityVocabulary.from_columns(ids, ["a name"] * len(ids), list(vocabulary.descriptions), counts)
    prints = [fingerprint("one", vocabulary), fingerprint("same", vocabulary), fingerprint("named", renamed)]
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 10_000)
    prints.append(fingerprint("cut", vocabulary))
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_an_output_that_cannot_be_replaced_is_refused_before_the_work(rows, tmp_path, monkeypatch):
    unread = iter(rows)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "file").touch()
    for output in (".", "/", "../file/x/y"):
        with pytest.raises(InputError, match=r"exists already|cannot be (replaced|made)"):
            write_dataset(unread, Path(output))
    assert next(unread) == rows[0]
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place")
    plain = [row._replace(entities=(), scores=()) for row in rows[:3]]
    write_dataset(plain, tmp_path / "link")
    assert open_dataset(tmp_path / "place").rows == 3 and (tmp_path / "link").is_symlink()
    with unfinished(tmp_path / "busy"), pytest.raises(InputError, match="another process is writing"):
        write_dataset(plain, tmp_path / "busy")


@pytest.mark.parametrize(("damage", "message"), [("cut", "has 1000 of"), ("remove", "is missing")])
def test_a_missing_or_truncated_chunk_is_named_at_once(i2e, tmp_path, damage, message):
    dataset = copy_of(i2e, tmp_path)
    chunk = dataset / "shards" / "chunk-000001.bin"
    if damage == "cut":
        os.truncate(chunk, 1000)
    else:
        chunk.unlink()
    with pytest.raises(InputError, match=rf"chunk-000001\.bin {message}"):
        ShardReader(open_dataset(dataset))


def test_an_index_that_would_make_litdata_unpickle_is_refused(plain, tmp_path):
    dataset = copy_of(plain, tmp_path)
    index = dataset / "shards" / "index.json"
    content = json.loads(index.read_text())
    content["config"]["data_format"][1] = "pickle"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="was not written by mofi"):
        ShardReader(open_dataset(dataset))


def test_what_is_no_data_set_is_refused_in_one_line(tmp_path, plain):
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no data set"):
        open_dataset(tmp_path)
    dataset = copy_of(plain, tmp_path)
    about = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**about, "schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        open_dataset(dataset)


def test_the_checksum_depends_on_every_field():
    fields = ("key", b"image", "text", (1,), (0.5,))

    def checksum_of(*fields: Any, chunk: int = 3, place: int = 4) -> int:
        return checksum(Row(*fields), chunk, place)

    others = ("kez", b"imagf", "texu", (2,), (0.25,))
    sums = {checksum_of(*fields), checksum_of(*fields, chunk=4), checksum_of(*fields, place=3)}
    sums |= {checksum_of(*(*fields[:i], others[i], *fields[i + 1 :])) for i in range(5)}
    sums.add(checksum_of("keyi", b"mage", "text", (1,), (0.5,)))
    assert len(sums) == 9
