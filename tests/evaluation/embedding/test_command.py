import io
import json
import shutil
import tarfile
from pathlib import Path

import litdata
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mofi_lightning.cli import main
from mofi_lightning.encoders.dual_encoder import DualEncoder, DualEncoderConfig
from mofi_lightning.evaluation import versions
from mofi_lightning.evaluation.datasets import EvaluationSet, at_path
from mofi_lightning.evaluation.embedding.image_streams import open_images
from mofi_lightning.evaluation.embedding.images import embed_images
from mofi_lightning.evaluation.embedding.parts import Listing, embed_part
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.types import InputError

IN_PARTS = ("--part_images", "40", "--batch_size", "16")


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return at_path(emoji_slice / "test.parquet").open()


@pytest.fixture(scope="module")
def pairs(emoji_slice) -> str:
    return str(emoji_slice / "test.parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    DualEncoder.from_config(DualEncoderConfig(embed_dim=8)).save(folder)
    return str(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_keys_and_vectors_are_those_of_the_images_in_their_order(tmp_path, data, pairs, capsys):
    main(["embed", "pixels", pairs, str(tmp_path / "out"), *IN_PARTS])
    table = pq.read_table(tmp_path / "out")
    assert table["key"].to_pylist() == [*pq.read_table(pairs)["key"].to_pylist()]
    want = embed_images(RawPixels(), pq.read_table(pairs)["image"].to_pylist()).embeddings
    torch.testing.assert_close(torch.tensor(table["vector"].to_pylist()), want)
    count = len(want)
    assert f"{count} of {count} images embedded" in capsys.readouterr().out
    assert len([*(tmp_path / "out").glob("part-*.parquet")]) == -(-count // 40)


def test_shards_together_are_one_process_bit_for_bit(tmp_path, pairs, model, capsys):
    main(["embed", model, pairs, str(tmp_path / "one"), "--features", "true", *IN_PARTS])
    for shard in ("2/3", "0/3", "1/3"):
        words = ["embed", model, pairs, str(tmp_path / "three"), "--features", "true", "--shard", shard]
        main([*words, *IN_PARTS])
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert pq.read_table(tmp_path / "one")["features"].type.list_size == 192


def test_npy_holds_what_parquet_does(tmp_path, pairs, model):
    for form in ("parquet", "npy"):
        main(["embed", model, pairs, str(tmp_path / form), "--features", "true", "--format", form, *IN_PARTS])
    table = pq.read_table(tmp_path / "parquet")
    parts = sorted(name.removesuffix(".keys.npy") for name in files(tmp_path / "npy") if ".keys" in name)
    for what, column in ((".keys", "key"), ("", "vector"), (".features", "features")):
        arrays = [np.load(tmp_path / "npy" / f"{part}{what}.npy") for part in parts]
        assert np.concatenate(arrays).tolist() == table[column].to_pylist()


def test_a_finished_part_is_not_made_again_and_a_missing_one_is(tmp_path, pairs, model, monkeypatch):
    words = ["embed", model, pairs, str(tmp_path), *IN_PARTS]
    main(words)
    whole = files(tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    made = (tmp_path / "part-00000.parquet").stat().st_mtime_ns
    main(words)
    assert files(tmp_path) == whole
    assert (tmp_path / "part-00000.parquet").stat().st_mtime_ns == made
    from mofi_lightning.evaluation.models.words import NamedModel

    monkeypatch.setattr(NamedModel, "load", None)  # whatever would load the model would fail
    main(words)


def test_undecodable_images_are_left_out_and_listed_with_their_reason(tmp_path, data, capsys):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name, image in (("a.png", data.images[0]), ("b.png", b"no image"), ("deep/c.png", data.images[1])):
        (folder / name).write_bytes(image)
    main(["embed", "pixels", str(folder), str(tmp_path / "out")])
    assert pq.read_table(tmp_path / "out")["key"].to_pylist() == ["a.png", "deep/c.png"]
    about = json.loads((tmp_path / "out" / "_parts" / "part-00000.json").read_text())
    assert about["images"] == 3
    assert about["failures"] == {"b.png": embed_images(RawPixels(), [data.images[0], b"no image"]).failed[1]}
    out = capsys.readouterr().out
    assert "2 of 3 images embedded" in out
    assert "1 left out: no JPEG, PNG, GIF or WebP image" in out
    assert f"{tmp_path / 'out' / '_parts' / 'part-00000.json'} says which, and why" in out


def test_a_part_without_an_image_has_the_columns_of_the_others(tmp_path, data):
    table = pa.table({"key": ["a", "b"], "image": [b"no image", data.images[0]]})
    pq.write_table(table, tmp_path / "images.parquet")
    words = ["embed", "pixels", str(tmp_path / "images.parquet"), str(tmp_path / "out"), "--part_images", "1"]
    main(words)
    assert pq.read_table(tmp_path / "out")["key"].to_pylist() == ["b"]
    assert pq.read_schema(tmp_path / "out" / "part-00000.parquet").field("vector").type.list_size == 768


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["embed", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_what_would_give_wrong_parts_is_refused(tmp_path, pairs, data, capsys):
    out = str(tmp_path / "out")
    main(["embed", "pixels", pairs, out, *IN_PARTS])
    error = refused(["pixels", pairs, out, "--part_images", "50", "--batch_size", "16"], capsys)
    assert "was made with part_images 40, not 50; give another folder" in error
    table = pq.read_table(pairs)
    pq.write_table(table.slice(1), tmp_path / "other.parquet")
    error = refused(["pixels", str(tmp_path / "other.parquet"), out, *IN_PARTS], capsys)
    assert "part-00000.parquet is of other images" in error
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), tmp_path / "twice.parquet")
    error = refused(["pixels", str(tmp_path / "twice.parquet"), str(tmp_path / "twice"), *IN_PARTS], capsys)
    assert f"key {table['key'][3].as_py()!r} comes twice" in error
    pq.write_table(pa.table({"key": ["a"], "image": [b"none"]}), tmp_path / "none.parquet")
    error = refused(["pixels", str(tmp_path / "none.parquet"), str(tmp_path / "none")], capsys)
    assert "none of 1 images could be embedded" in error
    (tmp_path / "file").write_text("")
    assert "is a file; give a folder" in refused(["pixels", pairs, str(tmp_path / "file")], capsys)


@pytest.mark.parametrize("shard", ["4/4", "1", "a/2", "-1/2", "1/0"])
def test_shards_that_are_none_are_refused(tmp_path, pairs, capsys, shard):
    assert "is not of the form 0/4" in refused(["pixels", pairs, str(tmp_path), f"--shard={shard}"], capsys)


def _rows(row: tuple[str, bytes]) -> dict[str, object]:
    return {"key": row[0], "image": row[1]}


def test_images_are_read_from_whatever_holds_them(tmp_path, data):
    rows = [(f"{row:03}", data.images[row]) for row in range(5)]
    table = pa.table({"key": [key for key, _ in rows], "image": [image for _, image in rows]})
    pq.write_table(table, tmp_path / "one.parquet")
    for split, part in (("test", table.slice(3)), ("train", table.slice(0, 3))):
        (tmp_path / "splits").mkdir(exist_ok=True)
        pq.write_table(part, tmp_path / "splits" / f"{split}.parquet")
    (tmp_path / "tars").mkdir()
    for number, part in (("00000", rows[:3]), ("00001", rows[3:])):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for key, image in part:
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
    (tmp_path / "files").mkdir()
    for key, image in rows:
        (tmp_path / "files" / f"{key}.png").write_bytes(image)
    writer = litdata.streaming.writer.BinaryWriter(str(tmp_path / "lit"), chunk_size=2)
    for row, pair in enumerate(rows):
        writer.add_item(row, _rows(pair))
    writer.done()
    writer.merge()

    def read(where: str, split: str = "") -> list[tuple[str, bytes]]:
        stream = open_images(str(tmp_path / where), split)
        found = [*stream.read()]
        assert stream.count in (None, len(found))
        assert found == [*stream.read()]
        return found

    assert read("one.parquet") == rows
    assert read("splits", "train") + read("splits", "test") == rows
    assert read("files") == [(f"{key}.png", image) for key, image in rows]
    in_tars = [(f"0000{int(row > 2)}/{key}", image) for row, (key, image) in enumerate(rows)]
    assert read("tars") == read("tars/{00000..00001}.tar") == in_tars
    assert read("lit") == rows
    with pytest.raises(InputError, match="has the splits test, train; choose one with --split"):
        read("splits")
    with pytest.raises(InputError, match="has no split 'val'; it has test, train"):
        read("splits", "val")
    with pytest.raises(InputError, match=r"no images at .*; give a parquet file, tars"):
        read("nowhere")


class Broken(RawPixels):
    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(image))[:, None] == 1, torch.nan, super().encode_image(image))


def test_numbers_that_are_not_finite_are_not_written(data):
    images = iter(list(zip("abc", data.images, strict=False)))
    listing = Listing()
    with pytest.raises(InputError, match="1 embeddings are not finite, the first of 'b'"):
        embed_part(Broken(), listing.noted(images), listing, 4, 1, with_features=False)


def test_models_that_do_not_fit_together_are_named_as_they_were_given(tmp_path, pairs, model, capsys):
    out = str(tmp_path / "out")
    main(["embed", model, pairs, out, *IN_PARTS])
    error = refused(["pixels", pairs, out, *IN_PARTS], capsys)
    assert f"was made with model {model!r}, not 'pixels'; give another folder" in error
    # the same files elsewhere are the same model
    copy = shutil.copytree(model, tmp_path / "copy")
    main(["embed", str(copy), pairs, out, *IN_PARTS])
    (copy / "note").write_text("of another content")
    main(["embed", str(copy), pairs, str(tmp_path / "second"), *IN_PARTS])
    (copy / "note").write_text("changed")
    error = refused([str(copy), pairs, str(tmp_path / "second"), *IN_PARTS], capsys)
    assert f"was made with model '{copy}' as it was before its files or weights changed" in error


def test_an_image_that_changed_under_its_key_is_not_passed_over(tmp_path, pairs, capsys):
    table, file, out = (
        pq.read_table(pairs).select(["key", "image"]).slice(0, 6),
        tmp_path / "a.parquet",
        "out",
    )
    words = ["embed", "pixels", str(file), str(tmp_path / out), "--part_images", "2"]
    pq.write_table(table, file)
    main(words)
    images = table["image"].to_pylist()
    images[2] = images[0]
    pq.write_table(pa.table({"key": table["key"], "image": images}), file)
    error = refused(words[1:], capsys)
    assert "part-00001.parquet is of other images" in error
    assert "delete it, and it is made anew" in error
    (tmp_path / out / "part-00001.parquet").unlink()
    main(words)
    vectors = pq.read_table(tmp_path / out)["vector"].to_pylist()
    assert vectors[2] == vectors[0]


def test_parts_beyond_the_images_are_refused_until_they_are_gone(tmp_path, pairs, capsys):
    table, file, out = pq.read_table(pairs).select(["key", "image"]), tmp_path / "a.parquet", tmp_path / "out"
    words = ["embed", "pixels", str(file), str(out), "--part_images", "2", "--format", "npy"]
    pq.write_table(table.slice(0, 6), file)
    main(words)
    pq.write_table(table.slice(0, 4), file)
    error = refused(words[1:], capsys)
    assert "part-00002.keys.npy, part-00002.npy of more images than" in error
    for left in out.glob("part-00002*"):
        left.unlink()
    main(words)


def test_parts_of_other_versions_of_the_libraries_are_refused(tmp_path, pairs, capsys, monkeypatch):
    main(["embed", "pixels", pairs, str(tmp_path), *IN_PARTS])
    monkeypatch.setattr(versions, "version", lambda library: "0.0.1")
    assert "was made with libraries" in refused(["pixels", pairs, str(tmp_path), *IN_PARTS], capsys)


def test_a_split_of_a_folder_of_image_files_is_refused(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data.images[0])
    with pytest.raises(InputError, match="which has no splits; leave out --split test"):
        open_images(str(tmp_path), "test")
