import io
import os

import pytest
from PIL import Image
from tests.evaluation.datasets.pictures import picture, put
from torchvision.datasets import ImageFolder

from mofi_lightning.evaluation.datasets import ClassFolders
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.types import InputError


def test_subfolders_are_classes_and_underscores_spaces(tmp_path):
    put(tmp_path / "polar_bear" / "1.png")
    put(tmp_path / "polar_bear" / "2.png")
    put(tmp_path / "whale" / "1.png")
    put(tmp_path / "whale" / "2.png")
    data = ClassFolders(tmp_path).open()
    assert data.keys == ["polar_bear/1.png", "polar_bear/2.png", "whale/1.png", "whale/2.png"]
    assert data.class_names == ["polar bear", "whale"]
    assert data.images[0] == (tmp_path / "polar_bear" / "1.png").read_bytes()
    assert data.captions == [("polar bear", "polar_bear"), ("whale", "whale")]
    assert data.fit is None and data.notes == ()


def test_images_and_labels_are_those_of_torchvisions_image_folder(tmp_path):
    for name in ("b/2.png", "b/10.jpg", "a/deep/x.png", "a/y.webp", "c/.hidden.png", "c/1.JPG"):
        put(tmp_path / name)
    data = ClassFolders(tmp_path).open()
    peer = ImageFolder(str(tmp_path))
    theirs = {(os.path.relpath(path, tmp_path), label) for path, label in peer.samples}
    assert {*zip(data.keys, data.labels().tolist(), strict=True)} == theirs - {("c/.hidden.png", 2)}


def test_images_are_read_when_asked_for(tmp_path):
    file = put(tmp_path / "a" / "1.png")
    other = put(tmp_path / "b" / "2.png")
    data = ClassFolders(tmp_path).open()
    file.write_bytes(b"later")
    assert data.images[0] == b"later" and data.images[:] == [b"later", other.read_bytes()]
    file.unlink()
    with pytest.raises(InputError, match=r"image .*1.png cannot be read \(No such file"):
        data.images[0]


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_splits_are_recognised(tmp_path, held_out):
    put(tmp_path / held_out / "a" / "1.png")
    put(tmp_path / held_out / "c" / "4.png")
    put(tmp_path / "train" / "a" / "2.png")
    put(tmp_path / "train" / "b" / "3.png")
    data = ClassFolders(tmp_path).open()
    assert (data.keys, data.fit.keys) == (["a/1.png", "c/4.png"], ["a/2.png", "b/3.png"])
    assert data.classes == ["a", "b", "c"]
    assert data.labels(data.fit.entities).tolist() == [0, 1]
    assert "1 of 3 classes has no image and is a candidate only: b" in data.notes


def test_test_goes_before_validation_which_is_told(tmp_path):
    for split in ("test", "val", "train"):
        put(tmp_path / split / "a" / f"{split}.png")
        put(tmp_path / split / "b" / f"{split}.png")
    data = ClassFolders(tmp_path).open()
    assert data.keys == ["a/test.png", "b/test.png"] and "test is evaluated; val is left out" in data.notes


def test_a_class_called_train_is_a_class(tmp_path):
    for name in ("train", "test", "bus"):
        put(tmp_path / name / "1.png")
    assert ClassFolders(tmp_path).open().classes == ["bus", "test", "train"]
    flat = tmp_path / "two"
    for name in ("train", "test"):
        put(flat / name / "1.png")
    assert ClassFolders(flat).open().classes == ["test", "train"]


def test_a_split_to_learn_from_alone_is_no_class(tmp_path):
    put(tmp_path / "train" / "cat" / "1.png")
    with pytest.raises(InputError, match=r"holds the split train only; give .*train, or bring .*test"):
        ClassFolders(tmp_path).open()


def test_images_deeper_than_their_class_are_told(tmp_path):
    put(tmp_path / "testing" / "cat" / "1.png")
    put(tmp_path / "training" / "cat" / "2.png")
    data = ClassFolders(tmp_path).open()
    assert data.notes[0] == "2 images lie deeper in the folder of their class, such as testing/cat/1.png"


def test_another_folder_to_learn_from_goes_first(tmp_path):
    put(tmp_path / "test" / "a" / "1.png")
    put(tmp_path / "test" / "b" / "1.png")
    put(tmp_path / "train" / "a" / "2.png")
    put(tmp_path / "more" / "a" / "3.png")
    (tmp_path / "more").rename(tmp_path.parent / "more")
    assert ClassFolders(tmp_path, fit=tmp_path.parent / "more").open().fit.keys == ["a/3.png"]


def test_names_come_from_a_table_and_what_it_lacks_or_has_too_much_is_told(tmp_path):
    data = tmp_path / "data"
    for name in ("n1", "n2", "n3"):
        put(data / name / "1.png")
    (data / "n4").mkdir()
    table = put(tmp_path / "names.tsv", "n1\tcrane\nn2\tcrane\nn4\towl\nn5\tauk\n")
    opened = ClassFolders(data, names=table).open()
    assert opened.names == {"n1": "crane", "n2": "crane", "n3": "n3", "n4": "owl", "n5": "auk"}
    assert opened.notes == (
        f"{table} has no name for 1 of 4 folders: n3",
        "2 of 5 classes have no image and are candidates only: n4, n5",
        "3 of 5 classes have one image: n1, n2, n3",
        "2 classes are called 'crane' (n1, n2); a text cannot tell them apart",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a crane\n", "line 1 of .* is 'a crane', not class<TAB>name"),
        ("a\tx\na\ty\n", "line 2 of .* names 'a' a second time"),
        ("a\t \n", "line 1 of .* is 'a', not class<TAB>name"),
        ("\n", "holds no names"),
        (b"a\t\xff\n", "is not UTF-8"),
    ],
)
def test_a_wrong_table_of_names_is_refused(tmp_path, text, message):
    put(tmp_path / "data" / "a" / "1.png")
    put(tmp_path / "data" / "b" / "1.png")
    with pytest.raises(InputError, match=message):
        ClassFolders(tmp_path / "data", names=put(tmp_path / "names.tsv", text)).open()


def test_hierarchy_and_seen_classes_are_read(tmp_path):
    for name in ("cat", "dog", "owl"):
        put(tmp_path / "data" / name / "1.png")
    hierarchy = put(tmp_path / "h.csv", "entity,category\ncat,mammal\ndog,mammal\nowl,bird\n")
    seen = put(tmp_path / "seen.txt", "cat\nowl\n")
    data = ClassFolders(tmp_path / "data", hierarchy=hierarchy, seen=seen).open()
    assert data.seen == {"cat", "owl"}
    assert data.hierarchy == {"cat": ["mammal"], "dog": ["mammal"], "owl": ["bird"]}
    with pytest.raises(InputError, match=r"seen classes .* names 1 that the data has not: emu"):
        ClassFolders(tmp_path / "data", seen=put(seen, "cat\nemu\n")).open()
    with pytest.raises(InputError, match=r"seen classes .* is empty"):
        ClassFolders(tmp_path / "data", seen=put(seen, "\n")).open()


def test_what_is_left_out_is_told(tmp_path):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "2.png")
    put(tmp_path / "b" / "5.png")
    put(tmp_path / "a" / "2.png")
    put(tmp_path / "a" / "3.bmp")
    os.symlink("nothing", tmp_path / "a" / "4.png")
    put(tmp_path / "stray.png")
    put(tmp_path / ".DS_Store")
    data = ClassFolders(tmp_path).open()
    assert data.keys == ["a/1.png", "a/2.png", "b/2.png", "b/5.png"]
    assert data.notes == (
        "2 files are left out (formats that are not decoded, links that lead to no file): a/3.bmp, a/4.png",
        "1 images are in no class's folder: stray.png",
    )


def test_a_link_round_in_a_circle_ends(tmp_path):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "b" / "1.png")
    os.symlink("..", tmp_path / "a" / "up")
    os.symlink("loop", tmp_path / "loop")
    data = ClassFolders(tmp_path).open()
    assert data.keys == ["a/1.png", "b/1.png"] and "a/up" in data.notes[0]


def test_no_folder_and_no_images_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no folder at .*subfolder of images a class"):
        ClassFolders(tmp_path / "nowhere").open()
    put(tmp_path / "a" / "notes.txt")
    with pytest.raises(InputError, match="holds no subfolders of images"):
        ClassFolders(tmp_path).open()


def test_images_that_cannot_be_decoded_are_told_and_keep_their_rows(tmp_path):
    # a picture of one colour has no embedding among raw pixels
    whole = io.BytesIO()
    Image.linear_gradient("L").save(whole, "PNG")
    image = whole.getvalue()
    contents = {"a/1.png": image, "a/2.png": b"", "b/1.png": image[:200], "b/2.png": b"text"}
    for name, content in contents.items():
        put(tmp_path / name, content)
    data = ClassFolders(tmp_path).open()
    embedder = Embedder(RawPixels())
    assert sorted(embedder.images(data).failed) == [1, 2, 3]
    assert embedder.labelled(data).rows.tolist() == [0] and len(data.keys) == 4


def test_one_class_alone_is_refused_with_the_folder_that_was_meant(tmp_path):
    put(tmp_path / "birds" / "crane" / "1.png")
    put(tmp_path / "birds" / "owl" / "deep" / "2.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as refused:
        ClassFolders(tmp_path).open()
    assert f"one class only, 'birds' (did you mean {tmp_path / 'birds'}?)" in str(refused.value)
    put(tmp_path / "alone" / "cat" / "1.png")
    with pytest.raises(InputError, match="one class only, 'cat'; give a folder with a subfolder"):
        ClassFolders(tmp_path / "alone").open()


def test_copies_of_a_file_in_two_classes_are_told(tmp_path):
    for name, colour in (("a/1", 1), ("a/2", 2), ("a/3", 2), ("b/4", 4), ("b/5", 1), ("c/6", 1), ("c/7", 4)):
        put(tmp_path / f"{name}.png", picture((colour, 0, 0)))
    assert "2 images are in two classes at once: 1.png (a, b, c)" in ClassFolders(tmp_path).open().notes
    put(tmp_path / "b" / "5.png", picture((5, 0, 0)))
    put(tmp_path / "c" / "6.png", picture((6, 0, 0)))
    put(tmp_path / "c" / "7.png", picture((7, 0, 0)))
    # copies within a class are none of these
    assert ClassFolders(tmp_path).open().notes == ()
