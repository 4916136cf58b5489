import pyarrow.parquet as pq
import pytest

datasets = pytest.importorskip("datasets")

from tests.evaluation.datasets.pictures import picture, put  # noqa: E402

from mofi_lightning.evaluation.datasets import HuggingFace  # noqa: E402
from mofi_lightning.types import InputError  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "cache"))


def _split(labels, kind=None, image=None):
    images = (
        [{"bytes": picture((n, 0, 0)), "path": None} for n in range(len(labels))] if image is None else image
    )
    features = {
        "image": datasets.Image(),
        "label": kind or datasets.ClassLabel(names=["barn_owl", "crane", "auk"]),
    }
    return datasets.Dataset.from_dict({"image": images, "label": labels}, datasets.Features(features))


def test_saved_splits_give_stored_bytes_labels_and_names(tmp_path):
    splits = datasets.DatasetDict(test=_split([1, 0, 1, 0]), train=_split([0, 1, 2]))
    splits.save_to_disk(tmp_path / "birds")
    data = HuggingFace(str(tmp_path / "birds"), fit_split="train").open()
    assert data.keys == ["test/0", "test/1", "test/2", "test/3"]
    assert [*data.images] == [picture((n, 0, 0)) for n in range(4)] == data.images[:]
    assert data.class_names == ["barn owl", "crane", "auk"]
    assert data.labels().tolist() == [1, 0, 1, 0] and data.labels(data.fit.entities).tolist() == [0, 1, 2]
    assert data.notes == ("1 of 3 classes has no image and is a candidate only: 0002",)


def test_a_folder_of_parquet_and_one_of_images_are_read_in_place(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    _split([1, 0]).to_parquet(folder / "test-00000-of-00001.parquet")
    assert HuggingFace(str(folder)).open().labels().tolist() == [1, 0]
    for name in ("crane/1.png", "owl/2.png"):
        put(tmp_path / "images" / "test" / name, picture((5, 5, 5)))
    data = HuggingFace(str(tmp_path / "images")).open()
    assert data.class_names == ["crane", "owl"] and data.images[1] == picture((5, 5, 5))


def test_labels_that_are_missing_are_counted_and_strings_are_names(tmp_path):
    _split([1, -1, None, 1]).save_to_disk(tmp_path / "a")
    data = HuggingFace(str(tmp_path / "a"), split="train").open()
    assert data.keys == ["train/0", "train/3"] and data.images[1] == picture((3, 0, 0))
    assert "2 of 4 rows of split 'train' have no label and are left out" in data.notes
    _split(["owl", "crane"], datasets.Value("string")).save_to_disk(tmp_path / "b")
    assert HuggingFace(str(tmp_path / "b"), split="train").open().class_names == ["crane", "owl"]
    _split([3, 12], datasets.Value("int64")).save_to_disk(tmp_path / "c")
    data = HuggingFace(str(tmp_path / "c"), split="train").open()
    assert data.names == {} and data.classes == ["0003", "0012"]


def test_images_that_are_no_part_of_the_data_set_are_refused(tmp_path):
    secret = put(tmp_path / "outside" / "secret.png")
    for path in (str(secret), "https://example.org/a.png"):
        folder = tmp_path / path.rpartition("/")[2]
        folder.mkdir()
        # `datasets` itself would write the bytes in place of the path
        table = _split([0], image=[{"bytes": None, "path": path}]).data.table
        pq.write_table(table, folder / "train.parquet")
        data = HuggingFace(str(folder), split="train").open()
        with pytest.raises(InputError, match="which is no part of the data set"):
            data.images[0]


def test_what_is_wrong_is_named_in_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"data set .*nowhere cannot be read .*https://huggingface.co/datasets"
    ) as e:
        HuggingFace(str(tmp_path / "nowhere")).open()
    assert "\n" not in str(e.value)
    path = str(tmp_path / "set")
    _split([-1, -1]).save_to_disk(path)
    with pytest.raises(InputError, match="has no split 'test'; it has train"):
        HuggingFace(path).open()
    with pytest.raises(InputError, match=r"no row of split 'train' of .* has a label"):
        HuggingFace(path, split="train").open()
    with pytest.raises(InputError, match=r"no column 'photo' \(it has image, label\); .*image_column"):
        HuggingFace(path, split="train", image_column="photo").open()
    with pytest.raises(InputError, match=r"'image' of .* holds a dict, no class; .*label_column"):
        HuggingFace(path, split="train", label_column="image").open()
    _split([0]).save_to_disk(path + "2")
    with pytest.raises(
        InputError, match="has a int as 'label', no image; name another column with image_column"
    ):
        HuggingFace(path + "2", split="train", image_column="label").open().images[0]
