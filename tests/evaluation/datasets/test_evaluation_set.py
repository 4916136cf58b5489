from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mofi_lightning.evaluation.datasets import iterate_images, open_evaluation_set
from mofi_lightning.types import InputError


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path)


def test_pairs_folder_gives_true_entities_names_and_captions(emoji_slice):
    data = open_evaluation_set(emoji_slice / "test.parquet")
    truth = {row["key"]: row for row in pq.read_table(emoji_slice / "truth.parquet").to_pylist()}
    pairs = pq.read_table(emoji_slice / "test.parquet").to_pylist()
    assert [*data.keys] == [pair["key"] for pair in pairs]
    assert data.entities == [truth[key]["entity"] for key in data.keys]
    assert list(data.images) == [pair["image"] for pair in pairs]
    assert [data.classes[label] for label in data.labels()] == data.entities
    assert {entity for _, entity in data.captions} == set(data.classes)
    assert (data.class_names[0], data.classes[0]) in data.captions


def test_gpr1200_folder_has_six_domains_of_two_hundred_categories(tmp_path):
    for category in (0, 199, 200, 1199):
        for name in ("a", "b"):
            _picture(tmp_path / f"{category}_{name}.jpg")
    data = open_evaluation_set(tmp_path)
    assert data.classes == ["0000", "0199", "0200", "1199"]
    assert data.domains == ["Landmarks"] * 4 + ["iNaturalist"] * 2 + ["Faces"] * 2


def test_subfolders_are_classes_and_underscores_spaces(tmp_path):
    _picture(tmp_path / "polar_bear" / "1.png")
    _picture(tmp_path / "whale" / "1.png")
    data = open_evaluation_set(tmp_path)
    assert [*data.keys] == ["polar_bear/1.png", "whale/1.png"]
    assert data.class_names == ["polar bear", "whale"]
    assert data.images[0] == (tmp_path / "polar_bear" / "1.png").read_bytes()


def test_fingerprint_follows_content_and_not_the_path(tmp_path, emoji_slice):
    first = open_evaluation_set(emoji_slice / "test.parquet")
    again = open_evaluation_set(emoji_slice / "test.parquet")
    other = open_evaluation_set(emoji_slice / "train.parquet")
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"no evaluation set at .*mofi pairs.*GPR1200"):
        open_evaluation_set(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no evaluation set"):
        open_evaluation_set(tmp_path)


def test_pairs_without_truth_or_with_a_wrong_column_are_named(tmp_path, emoji_slice):
    pairs = tmp_path / "test.parquet"
    pq.write_table(pq.read_table(emoji_slice / "test.parquet"), pairs)
    with pytest.raises(InputError, match=r"truth.parquet is missing"):
        open_evaluation_set(pairs)
    for name in ("truth", "knowledge_base"):
        pq.write_table(pq.read_table(emoji_slice / f"{name}.parquet"), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"key": ["a"], "photo": [b""]}), pairs)
    with pytest.raises(InputError, match=r"has no column 'image' \(it has key, photo\)"):
        open_evaluation_set(pairs)
    pairs.write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"test.parquet is no parquet file, or damaged"):
        open_evaluation_set(pairs)


def test_images_of_a_parquet_and_of_a_folder_come_with_their_keys(tmp_path, emoji_slice):
    table = pq.read_table(emoji_slice / "test.parquet")
    assert dict(iterate_images(emoji_slice / "test.parquet")) == dict(
        zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True)
    )
    _picture(tmp_path / "deep" / "b.png")
    _picture(tmp_path / "a.jpg")
    assert [key for key, _ in iterate_images(tmp_path)] == ["a.jpg", "deep/b.png"]
    with pytest.raises(InputError, match="no images at"):
        next(iterate_images(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        next(iterate_images(tmp_path / "empty"))


def test_files_that_no_decoder_reads_are_no_images(tmp_path):
    _picture(tmp_path / "whale" / "1.png")
    _picture(tmp_path / "whale" / "2.bmp")
    assert [key for key, _ in iterate_images(tmp_path)] == ["whale/1.png"]
    assert [*open_evaluation_set(tmp_path).keys] == ["whale/1.png"]
