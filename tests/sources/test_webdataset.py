"""The webdataset source: the samples that the library webdataset reads, and one clear line about bad tars."""

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

from mofi_lightning import cli
from mofi_lightning.sources.base import Pair
from mofi_lightning.sources.webdataset import WebDatasetSource
from mofi_lightning.types import InputError


@pytest.fixture(scope="session")
def rows(emoji_slice: Path) -> list[dict[str, object]]:
    return pq.read_table(emoji_slice / "test.parquet").to_pylist()


@pytest.fixture
def tars(rows: list[dict[str, object]], tmp_path: Path) -> Path:
    """Three tars as img2dataset writes them, of 20, 20 and 16 samples, with its statistics."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(3):
        part = rows[20 * shard : 20 * shard + 20]
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number, row in enumerate(part):
                key = f"{shard:05d}{number:04d}"
                about = {"key": key, "caption": row["text"], "url": f"http://x/{row['key']}", "exif": None}
                sample = {"png": row["image"], "txt": row["text"], "json": json.dumps(about).encode()}
                writer.write({"__key__": key, **sample})
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": len(part)}))
        (folder / f"{shard:05d}.parquet").write_bytes(b"")
    return folder


def write(path: Path, *members: tuple[str | tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path: Path, **options: str) -> list[Pair]:
    return list(WebDatasetSource(str(path), **options).pairs("train"))


def test_keys_bytes_and_texts_are_those_that_the_library_webdataset_reads(tars):
    files = [str(file) for file in sorted(tars.glob("*.tar"))]
    peer = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False))
    assert len(peer) == 56
    expected = [Pair(sample["__key__"], sample["png"], sample["txt"].decode()) for sample in peer]
    assert read(tars, key="json:key") == expected
    by_tar = [f"{Path(sample['__url__']).stem}/{sample['__key__']}" for sample in peer]
    assert [pair.key for pair in read(tars)] == by_tar


def test_a_tar_a_folder_and_patterns_name_the_same_samples(tars):
    expected = read(tars)
    for pattern in ("*.tar", "{00000..00002}.tar", "0000{0,1,2}.tar", "{00000,0000[12]}.tar"):
        assert read(tars / pattern) == expected
    assert read(tars / "00001.tar") == expected[20:40]


def test_tars_that_repeat_names_give_unique_keys_and_folders_of_tars_are_splits(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for shard in ("0.tar", "1.tar"):
            write(tmp_path / split / shard, ("000.jpg", b"i"), ("000.txt", b"t"))
    source = WebDatasetSource(str(tmp_path))
    assert source.splits == ("train", "val")
    keys = [pair.key for split in source.splits for pair in source.pairs(split)]
    assert keys == ["train/0/000", "train/1/000", "val/0/000", "val/1/000"]
    write(tmp_path / "2.tar", ("000.jpg", b"i"))
    with pytest.raises(InputError, match="holds tars, and so does its folder train"):
        WebDatasetSource(str(tmp_path))


def test_the_number_of_samples_is_known_where_img2dataset_left_it(tars):
    assert WebDatasetSource(str(tars)).count("train") == 56
    assert WebDatasetSource(str(tars / "0000[12].tar")).count("train") == 36
    (tars / "00001_stats.json").unlink()
    assert WebDatasetSource(str(tars)).count("train") is None


def test_gzip_makes_no_difference(tars, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tars / "00000.tar").read_bytes()))
    assert [pair[1:3] for pair in read(tmp_path / "a.tar.gz")] == [
        pair[1:3] for pair in read(tars / "00000.tar")
    ]
    assert read(tmp_path / "a.tar.gz")[0].key == "a/000000000"


def test_the_text_comes_from_txt_else_the_caption_or_from_what_is_named(tmp_path):
    about = json.dumps({"caption": "c \ud800", "alt": "a", "tags": ["x"]}).encode()
    path = write(
        tmp_path / "a.tar",
        ("0.jpg", b"i"), ("0.json", about), ("0.txt", b"\xef\xbb\xbf t\n"), ("0.en.txt", b"e"),
        ("1.jpg", b"i"), ("1.json", about), ("1.en.txt", b"e"),
    )  # fmt: skip
    assert [pair.text for pair in read(path)] == ["t", "c \ufffd"]
    assert [pair.text for pair in read(path, text="json:alt")] == ["a", "a"]
    assert [pair.text for pair in read(path, text=".en.txt")] == ["e", "e"]
    assert [pair.text for pair in read(path, text="txt")] == ["t", ""]
    with pytest.raises(InputError, match=r"has no field 'captoin' \(it has caption, alt, tags\); .*--text"):
        read(path, text="json:captoin")
    with pytest.raises(InputError, match=r"text of sample '0' in .*a\.tar is a list, no string"):
        read(path, text="json:tags")
    with pytest.raises(InputError, match=r"no texts: its files end in en\.txt, jpg, json; .*--text"):
        read(path, text="cap")


def test_samples_without_image_or_text_are_kept_with_empty_ones(tmp_path):
    path = write(tmp_path / "a.tar", ("0.txt", b"t"), ("1.JPG", b"i"), ("dir/1.cls", b"7"))
    assert read(path) == [Pair("a/0", b"", "t"), Pair("a/1", b"i", ""), Pair("a/dir/1", b"", "")]


def test_folders_hidden_files_and_names_of_the_archive_are_no_samples(tmp_path):
    folder = tarfile.TarInfo("./d.jpg")
    folder.type = tarfile.DIRTYPE
    path = write(
        tmp_path / "a.tar", (folder, b""), ("./d/._0.jpg", b"x"), ("README", b"x"), ("./d/0.jpg", b"i")
    )
    assert read(path) == [Pair("a/d/0", b"i", "")]


def test_tars_without_known_images_are_named_with_the_suffixes_that_they_have(tmp_path):
    path = write(tmp_path / "a.tar", ("0.bmp", b"i"), ("0.txt", b"t"))
    with pytest.raises(InputError, match=r"a\.tar has no images: its files end in bmp, txt; .*--image"):
        read(path)
    assert read(path, image="bmp") == [Pair("a/0", b"i", "t")]


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("1.jpg")
    info.type, info.linkname = kind, "0.jpg"
    return info


def claims(size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo("1.jpg")
    info.type, info.size = kind, size
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.jpg", b"i"), ("0.png", b"i")], r"sample '0' in .*a\.tar has a jpg and a png; .*--image"),
        ([("0.jpg", b"i"), ("0.jpg", b"j")], r"a\.tar holds '0\.jpg' twice"),
        (
            [("0.jpg", b"i"), ("1.jpg", b"i"), ("0.txt", b"t")],
            r"'0' .* do not follow each other.*--sort=name",
        ),
        ([("0.jpg", b"i"), ("0.txt", b"caf\xe9")], r"the txt of sample '0' in .*a\.tar is not UTF-8"),
        ([("0.jpg", b"i"), ("0.json", b"{")], r"the json of sample '0' in .*a\.tar cannot be read"),
        ([("0.jpg", b"i"), ("0.json", b"[" * 99_999)], r"the json of sample '0' in .*a\.tar cannot be read"),
        ([("0.jpg", b"i"), ("0.json", b"[]")], r"the json of sample '0' in .*a\.tar is no object"),
        ([("0.jpg", b"i"), (link(tarfile.SYMTYPE), b"")], r"'1\.jpg' in .*a\.tar is a link or a device"),
        ([("0.jpg", b"i"), (link(tarfile.LNKTYPE), b"")], r"'1\.jpg' in .*a\.tar is a link or a device"),
        ([("0.jpg", b"i"), (link(tarfile.CHRTYPE), b"")], r"'1\.jpg' in .*a\.tar is a link or a device"),
        ([("0.jpg", b"i"), (claims(2**40), b"")], r"'1\.jpg' in .*a\.tar has 1,099,511,627,776 bytes"),
        (
            [("0.jpg", b"i"), (claims(2**30, tarfile.XHDTYPE), b"")],
            r"cannot be read after '0\.jpg' \(a header",
        ),
        ([("0.jpg", b"i"), (claims(-(2**60)), b"")], r"cannot be read after '0\.jpg' \(a header"),
    ],
)
def test_what_cannot_be_a_sample_is_named(tmp_path, members, message):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                info.size = len(content)
            # a size may be a lie
            tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_keys_must_be_named_as_fields_that_every_sample_has(tmp_path):
    path = write(tmp_path / "a.tar", ("0.jpg", b"i"), ("0.json", b'{"key": 7, "x": null}'), ("1.jpg", b"i"))
    with pytest.raises(InputError, match="key 'url' is no field of a json; give json:NAME"):
        read(path, key="url")
    pairs = WebDatasetSource(str(path), key="json:key").pairs("train")
    assert next(pairs).key == "7"
    with pytest.raises(InputError, match=r"sample '1' in .* has no json; it has jpg"):
        next(pairs)
    with pytest.raises(InputError, match=r"json:x of sample '0' in .* is a NoneType, no key; .*--key"):
        read(path, key="json:x")


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", bytes(100), random.Random(0).randbytes(2000)]
)
def test_a_file_that_is_no_tar_is_named_at_once(tars, content):
    (tars / "00001.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"00001\.tar is no tar, or damaged \(.*\); write or") as error:
        WebDatasetSource(str(tars))
    assert "\n" not in str(error.value)


def test_missing_tars_and_empty_folders_are_named(tars, tmp_path):
    with pytest.raises(InputError, match=r"no tar at .*00003\.tar; correct --path"):
        WebDatasetSource(str(tars / "{00000..00099}.tar"))
    with pytest.raises(InputError, match=r"no tar at .*missing"):
        WebDatasetSource(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"no tar at .*\*\.tar\.gz"):
        WebDatasetSource(str(tars / "*.tar.gz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty and its folders hold no \*\.tar"):
        WebDatasetSource(str(tmp_path / "empty"))


def test_a_tar_that_is_cut_short_loses_no_sample_silently(tars):
    path = tars / "00000.tar"
    content, whole = path.read_bytes(), read(path)
    with tarfile.open(path) as tar:
        end = max(member.offset_data + member.size for member in tar)
    for size in range(512, end, 4 * 512 + 100):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"00000\.tar cannot be read after|is no tar, or damaged"):
            read(path)
    path.write_bytes(gzip.compress(content)[:-10])
    with pytest.raises(InputError, match=r"00000\.tar .*end-of-stream"):
        read(path)
    path.write_bytes(content)
    assert read(path) == whole


def test_a_damaged_header_in_the_middle_is_no_end(tars):
    path = tars / "00000.tar"
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[30].offset
    content = path.read_bytes()
    for damage in (b"\xff" * 512, bytes(512)):
        path.write_bytes(content[:offset] + damage + content[offset + 512 :])
        with pytest.raises(InputError, match=r"00000\.tar (cannot be read after|goes on behind its end)"):
            read(path)
    path.write_bytes(content + content)
    with pytest.raises(InputError, match="goes on behind its end; join tars with `tar --concatenate`"):
        read(path)


def test_any_damage_gives_one_line_and_never_another_error(tars, tmp_path):
    draw = random.Random(0)
    small = write(tmp_path / "s.tar", *[(f"{n}{'x' * 150 * (n == 2)}.jpg", b"i" * 700) for n in range(5)])
    content = small.read_bytes()
    assert len(read(small)) == 5
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(5 * 1536)] = draw.randrange(256)
        small.write_bytes(damaged)
        try:
            assert len(read(small)) == 5
        except InputError as error:
            assert "\n" not in str(error)


def test_tars_stream(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3_000):
            info = tarfile.TarInfo(f"{number:05d}.jpg")
            info.size = 20_000
            tar.addfile(info, io.BytesIO(bytes(20_000)))
    tracemalloc.start()
    try:
        assert sum(len(pair.image) for pair in WebDatasetSource(str(tmp_path)).pairs("train")) == 60_000_000
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_the_command_reads_tars(tars, tmp_path, rows):
    words = ["--path", str(tars / "{00000..00002}.tar"), "--key", "json:url"]
    cli.main(["pairs", "webdataset", *words, "--output", str(tmp_path / "pairs")])
    written = pq.read_table(tmp_path / "pairs" / "train.parquet").to_pylist()
    assert written == [{**row, "key": f"http://x/{row['key']}"} for row in rows]
