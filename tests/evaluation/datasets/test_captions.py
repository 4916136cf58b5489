import json

import pytest
from tests.evaluation.datasets.pictures import put

from mofi_lightning.evaluation.datasets import CaptionsFile
from mofi_lightning.types import InputError


def _image(name, *sentences, split="test", **other):
    return {"filename": name, "split": split, "sentences": [{"raw": raw} for raw in sentences], **other}


def _write(path, *images):
    return put(path, json.dumps({"images": images, "dataset": "x"}))


def test_each_image_is_an_entity_with_all_its_sentences(tmp_path):
    images = (
        _image("1.jpg", "a dog", " a  hound "),
        _image("2.jpg", "a cat", split="train"),
        _image("3.jpg", "a bird", "", filepath="val2014"),
        _image("4.jpg"),
    )
    file = _write(tmp_path / "dataset_coco.json", *images)
    for name in ("1.jpg", "val2014/3.jpg", "4.jpg"):
        put(tmp_path / "images" / name)
    data = CaptionsFile(file, tmp_path / "images").open()
    assert data.keys == data.entities == data.classes == ["1.jpg", "3.jpg", "4.jpg"]
    assert data.captions == [("a dog", "1.jpg"), ("a  hound", "1.jpg"), ("a bird", "3.jpg")]
    assert data.images[1] == (tmp_path / "images" / "val2014" / "3.jpg").read_bytes()
    assert data.names == {} and data.name == "coco/test"
    assert data.notes == ("1 of 3 images have no caption: 4.jpg",)


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    put(tmp_path / "secret.jpg")
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="leads out of the folder of images"):
        CaptionsFile(_write(tmp_path / "in" / "c.json", _image(name, "x"))).open()
    with pytest.raises(InputError, match="leads out of the folder of images"):
        CaptionsFile(_write(tmp_path / "in" / "c.json", _image("secret.jpg", "x", filepath=".."))).open()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no captions at .*caption_datasets.zip"):
        CaptionsFile(tmp_path / "c.json").open()
    file = _write(tmp_path / "c.json", _image("1.jpg", "x"), _image("2.jpg", "y"))
    put(tmp_path / "1.jpg")
    with pytest.raises(InputError, match=r"1 of 2 images of .* are not below .*: 2.jpg"):
        CaptionsFile(file).open()
    with pytest.raises(InputError, match="no image of split 'val'; it has test"):
        CaptionsFile(file, split="val").open()
    with pytest.raises(InputError, match="no folder of images at"):
        CaptionsFile(file, tmp_path / "nowhere").open()
    put(tmp_path / "2.jpg")
    _write(file, _image("1.jpg", "x"), _image("1.jpg", "y"))
    with pytest.raises(InputError, match=r"keys more than once: 1.jpg"):
        CaptionsFile(file).open()


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"images": 3}', '{"images": [3]}', '{"images": [{"split": "test"}]}', "[" * 100_000,
     '{"images": [{"split": "test", "filename": "1.jpg", "sentences": ["x"]}]}'],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(tmp_path, text):
    put(tmp_path / "1.jpg")
    with pytest.raises(InputError, match=r"caption_datasets\.zip"):
        CaptionsFile(put(tmp_path / "c.json", text)).open()


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"names an image 'a{40}', which can be no file \(File name too long"
    ):
        CaptionsFile(_write(tmp_path / "c.json", _image("a" * 300, "x"))).open()
