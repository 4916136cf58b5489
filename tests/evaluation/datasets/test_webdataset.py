import io
import random
import tarfile
from pathlib import Path

import pytest
import webdataset
from tests.evaluation.datasets.pictures import picture, put

from mofi_lightning.evaluation.datasets import WebDataset
from mofi_lightning.evaluation.suite.suite import load_suites
from mofi_lightning.types import InputError


def tar_of(*files, **changed) -> bytes:
    """A tar with files (name, content), attributes of the last of which are changed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if (name, content) == files[-1]:
                for key, value in changed.items():
                    setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def classes(path, *labels, split="test", names="crane\nowl\n"):
    """A data set with an image a label in one tar."""
    files = [
        (f"s{n:07d}.{s}", c)
        for n, label in enumerate(labels)
        for s, c in (("png", picture((n, 0, 0))), ("cls", label))
    ]
    put(path / split / "0.tar", tar_of(*files))
    put(path / split / "nshards.txt", "1\n")
    put(path / "classnames.txt", names)
    return path


def test_what_clip_benchmark_writes_is_read_as_its_own_library_reads_it(tmp_path):
    seen = random.Random(0)
    for split, size in (("train", 9), ("test", 25)):
        (tmp_path / split).mkdir()
        # as clip_benchmark.webdataset_builder.convert_dataset does
        with webdataset.ShardWriter(f"{tmp_path / split}/%d.tar", maxcount=10, verbose=0) as sink:
            for number in range(size):
                image = picture((seen.randrange(256), number, 0), "WEBP")
                sink.write({"__key__": f"s{number:07d}", "webp": image, "cls": seen.randrange(3)})
            shards = sink.shard
        put(tmp_path / split / "nshards.txt", f"{shards}\n")
    put(tmp_path / "classnames.txt", "crane\nbarn owl\nauk\n")
    put(tmp_path / "zeroshot_classification_templates.txt", "a photo of a {c}.\n{c}, a {c}\n")
    data = WebDataset(tmp_path).open()
    peer = [
        (sample["webp"], int(sample["cls"]))
        for sample in webdataset.WebDataset(f"{tmp_path}/test/{{0..2}}.tar", shardshuffle=False)
    ]
    assert [*zip(data.images, data.labels().tolist(), strict=True)] == peer
    assert data.class_names == ["crane", "barn owl", "auk"]
    assert data.templates == ("a photo of a {}.", "{}, a {}")
    assert data.keys[9:11] == ["test/0/s0000009", "test/1/s0000010"] and len(data.fit.keys) == 9
    assert data.images[-1] == data.images[20:][-1] == peer[-1][0]
    assert data.notes == ()


def test_several_captions_an_image(tmp_path):
    texts = ("a crane\na bird \n\n", "an owl", "")
    files = [
        f for n, text in enumerate(texts) for f in ((f"{n}.jpg", picture()), (f"{n}.txt", text.encode()))
    ]
    put(tmp_path / "test" / "0.tar", tar_of(*files))
    put(tmp_path / "dataset_type.txt", "retrieval\n")
    data = WebDataset(tmp_path).open()
    assert data.entities == data.keys == ["test/0/0", "test/0/1", "test/0/2"]
    assert data.captions == [("a crane", "test/0/0"), ("a bird", "test/0/0"), ("an owl", "test/0/1")]
    assert data.names == {} and data.notes == ("1 of 3 images have no caption: test/0/2",)


def test_without_nshards_all_tars_are_read_by_number(tmp_path):
    for number in (10, 2):
        put(tmp_path / "test" / f"{number}.tar", tar_of(("a.png", picture()), ("a.cls", b"0")))
    assert WebDataset(tmp_path).open().keys == ["test/2/a", "test/10/a"]
    put(tmp_path / "test" / "nshards.txt", "1")
    with pytest.raises(
        InputError, match=r"0.tar is missing, one of the 1 that nshards.txt counts; .*hf download"
    ):
        WebDataset(tmp_path).open()
    for wrong in ("0", "-1", "x", "\u0663"):
        put(tmp_path / "test" / "nshards.txt", wrong)
        with pytest.raises(InputError, match="not the number of tars"):
            WebDataset(tmp_path).open()


def test_a_class_without_images_stays_a_candidate_and_names_may_be_missing(tmp_path):
    data = WebDataset(classes(tmp_path, b"1", b"1\n")).open()
    assert data.class_names == ["crane", "owl"] and data.labels().tolist() == [1, 1]
    assert data.notes == ("1 of 2 classes has no image and is a candidate only: 0000",)
    (tmp_path / "classnames.txt").unlink()
    data = WebDataset(tmp_path).open()
    assert data.names == {} and "has no classnames.txt" in data.notes[0]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            b"2",
            r"the cls of sample 'test/0/s0000000' in .* is '2', not 0 to 1, as classnames.txt has 2 lines",
        ),
        (b"-1", "is '-1', not 0 to 1"),
        (b"crane", "is 'crane'"),
        (b"", "is ''"),
        (b"\xff", "is not UTF-8"),
        (b"1" * 5000, "is '11111111111111111111', not 0 to 1"),
        (b"1" * 2**21, "more than any text"),
    ],
)
def test_a_label_that_is_no_class_is_refused(tmp_path, label, message):
    with pytest.raises(InputError, match=message):
        WebDataset(classes(tmp_path, label)).open()


PAIR = (("a.png", picture()), ("a.cls", b"0"))


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (tar_of(*PAIR, ("b.cls", b"0")), "sample 'test/0/b' in .* needs one image .* but has none"),
        (tar_of(*PAIR, ("a.jpg", b"")), "has png and jpg"),
        (tar_of(*PAIR, ("b.png", b"")), "sample 'test/0/b' in .* has no cls"),
        (tar_of(*PAIR, ("a.png", b"")), "sample 'a' in .* has two files png"),
        (tar_of(*PAIR, ("b.png", b""), type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link, a device"),
        (tar_of(*PAIR, ("b.png", b""), type=tarfile.LNKTYPE, linkname="a.png"), "is a link, a device"),
        (tar_of(*PAIR, ("b.png", b""), type=tarfile.CHRTYPE), "is a link, a device"),
        (tar_of(*PAIR)[:1536], "no end mark|cut|unexpected end"),
        (tar_of(*PAIR)[:700], "unexpected end|cannot be read"),
        (tar_of(*PAIR) + tar_of(*PAIR), "goes on behind its end"),
        (tar_of(*PAIR)[:1024] + b"\x01" * 512 + tar_of(*PAIR)[1536:], "cannot be read after 'a.png'"),
        (b"no tar" * 500, "is no tar, or damaged"),
        (b"\x1f\x8b" + bytes(2000), "is compressed"),
        (tar_of(), "hold no samples"),
    ],
)  # fmt: skip
def test_a_damaged_or_strange_tar_is_named(tmp_path, tar, message):
    put(tmp_path / "test" / "0.tar", tar)
    with pytest.raises(InputError, match=message):
        WebDataset(tmp_path).open()


def test_a_tar_cut_anywhere_never_gives_a_smaller_data_set(tmp_path):
    files = [(f"{n}.{s}", c) for n in range(4) for s, c in (("png", picture()), ("cls", b"0"))]
    whole = tar_of(*files)
    end = len(whole.rstrip(b"\0")) + 1024
    for size in range(0, end, 128):
        put(tmp_path / "test" / "0.tar", whole[:size])
        try:
            assert len(WebDataset(tmp_path).open().keys) == 4
        except InputError:
            continue
        assert not whole[size:].strip(b"\0")


def test_names_are_keys_only_and_nothing_is_unpacked(tmp_path):
    put(
        tmp_path / "set" / "test" / "0.tar",
        tar_of(("../../evil.png", picture()), ("../../evil.cls", b"0"), ("._a.png", b"")),
    )
    before = sorted(tmp_path.rglob("*"))
    data = WebDataset(tmp_path / "set").open()
    assert data.images[0] == picture() and data.keys == ["test/0/../../evil"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tar_that_shrinks_afterwards_is_told(tmp_path):
    data = WebDataset(classes(tmp_path, b"0")).open()
    put(tmp_path / "test" / "0.tar", b"")
    with pytest.raises(InputError, match=r"0.tar ends within 's0000000.png'"):
        data.images[0]


def test_other_data_and_templates_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no WebDataset at .*hf download"):
        WebDataset(tmp_path).open()
    classes(tmp_path, b"0")
    put(tmp_path / "zeroshot_classification_templates.txt", "a photo\n{c}\n")
    with pytest.raises(InputError, match=r"templates without the \{c\} where the name goes: a photo"):
        WebDataset(tmp_path).open()
    put(tmp_path / "classnames.txt", "crane\n\nowl\n")
    with pytest.raises(InputError, match=r"line 2 of .*classnames.txt is empty"):
        WebDataset(tmp_path).open()
    put(tmp_path / "dataset_type.txt", "multilabel\n")
    with pytest.raises(InputError, match="is a data set of 'multilabel'"):
        WebDataset(tmp_path).open()


@pytest.mark.parametrize(
    ("folder", "repository"),
    [("vtab/dtd", "wds_vtab-dtd"), ("sun397", "wds_sun397"), ("wds_vtab-pets", "wds_vtab-pets")],
)
def test_a_missing_set_is_told_where_its_own_tars_are(tmp_path, folder, repository):
    path = tmp_path / folder
    with pytest.raises(InputError) as refused:
        WebDataset(path).open()
    assert f"clip-benchmark/{repository} --local-dir {path}`" in str(refused.value)


def test_each_set_of_vtab_has_a_folder_of_its_own():
    suite = load_suites([Path("configs/evaluation/vtab.yaml")], [])
    paths = {name: task.data.path for name, task in suite.tasks.items()}
    assert len({*paths.values()}) == 19
    assert all(path.name == name for name, path in paths.items())
    # the only one that CLIP_benchmark has outside of its vtab/
    assert [name for name, path in paths.items() if path.parent.name != "vtab"] == ["sun397"]


def test_a_number_of_tars_beyond_all_is_refused(tmp_path):
    classes(tmp_path, b"0", b"1")
    (tmp_path / "test" / "nshards.txt").write_text("1" * 5000)
    with pytest.raises(InputError, match=r"nshards.txt says '11111111111111111111', not the number of tars"):
        WebDataset(tmp_path).open()
