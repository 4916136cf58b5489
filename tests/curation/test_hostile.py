"""What comes from the web is hostile: each kind of it is refused, bounded or left out, as documented."""

import io
import struct
import tarfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.knowledge_bases.command import build
from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase
from mofi_lightning.curation.knowledge_bases.tables import TableReader
from mofi_lightning.curation.pipeline import curate
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.sources.webdataset import WebDatasetSource
from mofi_lightning.sources.write import write_pairs
from mofi_lightning.types import InputError


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that would fill gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.timeout(60)
def test_a_tar_of_the_web_is_curated_without_what_is_hostile(
    tmp_path: Path, drawings: Sequence[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    long = "red dot " * (10 * 2**20 // 8)
    with tarfile.open(tars / "00000.tar", "w") as tar:
        for name, image, text in [
            ("1", drawings[0], "a red dot"),
            ("../../evil", drawings[0], "the red dot"),
            ("3", bomb(60_000), "red dot"),
            ("4", drawings[0], long),
            ("5", drawings[0], "\u202ered\x00 dot<script>"),
        ]:
            add(tar, f"{name}.png", image)
            add(tar, f"{name}.txt", text.encode())
    write_pairs(WebDatasetSource(str(tars)), tmp_path / "pairs")
    entities = [
        {"id": "Q1", "name": "red dot", "aliases": ["dot"], "description": "a shape"},
        {"id": "Q1", "name": "another thing of that id", "aliases": [], "description": ""},
        {"id": "Q2", "name": "", "aliases": ["thing without a name"], "description": ""},
        # each is an alias of the other: two candidates of both names
        {"id": "Q3", "name": "cyclic", "aliases": ["acyclic"], "description": ""},
        {"id": "Q4", "name": "acyclic", "aliases": ["cyclic"], "description": ""},
    ]
    pq.write_table(pa.Table.from_pylist(entities), tmp_path / "entities.parquet")
    build(TableReader(tmp_path / "entities.parquet"), tmp_path / "kb")
    said = capsys.readouterr().out
    assert "3 entities" in said and "Q1" in said
    base = KnowledgeBase(tmp_path / "kb")
    assert len(base.aliases.candidates(base.aliases.number("cyclic"))[0]) == 2

    before = {path for path in tmp_path.parent.rglob("*evil*")}
    start = time.monotonic()
    curate(
        tmp_path / "pairs" / "train.parquet",
        tmp_path / "out",
        knowledge_base=tmp_path / "kb",
        min_images=1,
        num_workers=0,
    )
    assert time.monotonic() - start < 20
    reader = ShardReader(open_dataset(tmp_path / "out"))
    rows = [reader[index] for index in range(len(reader))]
    assert [row.key for row in rows] == ["00000/1", "00000/../../evil", "00000/4", "00000/5"]
    assert {path for path in tmp_path.parent.rglob("*evil*")} == before
    assert "image with too many pixels" in (tmp_path / "out" / "curation.json").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "\u202e" not in page and len(page) < 2**20


def test_a_link_in_a_tar_ends_the_reading_with_its_name(tmp_path: Path, drawings: Sequence[bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "1.png", drawings[0])
        link = tarfile.TarInfo("2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"'2\.png' in .*a\.tar is a link or a device"):
        write_pairs(WebDatasetSource(str(tmp_path / "a.tar")), tmp_path / "pairs")
    assert not (tmp_path / "pairs" / "train.parquet").exists()


def test_a_knowledge_base_without_names_is_refused(tmp_path: Path) -> None:
    rows = [{"id": "Q1", "name": "", "aliases": ["a"], "description": ""}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "entities.parquet")
    with pytest.raises(InputError, match="entit"):
        build(TableReader(tmp_path / "entities.parquet"), tmp_path / "kb")
    assert not (tmp_path / "kb").exists()
