import bz2
import gzip
import zlib
from pathlib import Path
from typing import Any

import pytest

from mofi_lightning.curation.knowledge_bases.base import Faults
from mofi_lightning.curation.knowledge_bases.lines import lines
from mofi_lightning.types import InputError

TEXT = b"".join(b"line %d of the file\n" % number for number in range(1, 5001))
EXPECTED = list(enumerate(TEXT.splitlines(keepends=True), 1))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.json", TEXT),
        ("one.json.gz", gzip.compress(TEXT)),
        ("two.json.gz", gzip.compress(TEXT[:1234]) + gzip.compress(TEXT[1234:])),
        ("one.json.bz2", bz2.compress(TEXT)),
        ("two.json.bz2", bz2.compress(TEXT[:1234]) + bz2.compress(TEXT[1234:])),
    ],
)
def test_lines_are_those_of_the_file_however_it_is_compressed(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)

    assert list(lines(tmp_path / name, Faults())) == EXPECTED


@pytest.mark.parametrize("suffix", ["gz", "bz2"])
def test_a_compressed_file_that_is_cut_off_gives_its_whole_lines(suffix: str, tmp_path: Path) -> None:
    noise = b"".join(b"%x\n" % pow(7, 3 * number, 2**127 - 1) for number in range(40_000))
    whole = gzip.compress(noise) if suffix == "gz" else bz2.compress(noise)
    cut = whole[: len(whole) * 9 // 10]
    left = zlib.decompressobj(31).decompress(cut) if suffix == "gz" else bz2.BZ2Decompressor().decompress(cut)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(cut)
    faults = Faults()

    found = [line for _, line in lines(path, faults)]

    assert len(left) > 800_000
    assert found == left[: left.rindex(b"\n") + 1].splitlines(keepends=True)
    assert faults.counts == {"the file is cut off or damaged from here on": 1}
    assert faults.examples[0].startswith(f"line {len(found) + 1:,}: the file is cut off")


@pytest.mark.parametrize("damage", ["magic", "block", "cut"])
def test_a_later_stream_that_is_damaged_is_a_fault_of_its_line(damage: str, tmp_path: Path) -> None:
    first, second = bz2.compress(TEXT[: TEXT.index(b"line 101 ")]), bytearray(bz2.compress(TEXT))
    if damage == "cut":
        del second[3:]
    else:
        second[0 if damage == "magic" else 4] ^= 255
    (tmp_path / "x.bz2").write_bytes(first + second)
    faults = Faults()

    assert list(lines(tmp_path / "x.bz2", faults)) == EXPECTED[:100]
    assert faults.counts == {"the file is cut off or damaged from here on": 1}
    assert faults.examples[0].startswith("line 101: ")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_a_byte_order_mark_is_no_part_of_the_first_line(compress: Any, tmp_path: Path) -> None:
    path = tmp_path / {bytes: "x", gzip.compress: "x.gz", bz2.compress: "x.bz2"}[compress]
    path.write_bytes(compress(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"))

    assert list(lines(path, Faults())) == [(1, b"a\n"), (2, b"\xef\xbb\xbfb\n")]


def test_too_long_a_line_is_counted_and_the_next_one_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\n" + b"b" * 10_000_000 + b"\nc\n" + b"d" * 9_000_000)
    faults = Faults()

    assert list(lines(tmp_path / "x", faults)) == [(1, b"a\n"), (3, b"c\n")]
    assert faults.examples == [f"line {n}: line longer than 8,388,608 bytes" for n in (2, 4)]
    assert list(lines(tmp_path / "x", Faults(), longest=1)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json.gz", b"{}\n", r"x\.json\.gz is no gz file, or damaged at its start"),
        ("x.json.bz2", b"{}\n", r"x\.json\.bz2 is no bz2 file, or damaged at its start"),
        ("x.json.gz", gzip.compress(TEXT)[:12], r"is no gz file, or damaged at its start"),
        ("x.json", b"", "is empty; write or download it anew"),
        ("x.json", None, "no file .*; give the path of a file"),
    ],
)
def test_files_that_are_not_what_they_are_called_are_explained(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(lines(tmp_path / name, Faults()))
