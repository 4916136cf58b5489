import os

from tests.evaluation.datasets.pictures import put

from mofi_lightning.evaluation.datasets.files import find_images


def test_hidden_files_are_none_and_what_cannot_be_read_is_named(tmp_path):
    image, deep = put(tmp_path / "b.JPG"), put(tmp_path / "deep" / "a.png")
    for hidden in (".DS_Store", "._b.jpg", ".cache/c.png"):
        put(tmp_path / hidden)
    put(tmp_path / "notes.txt")
    scan = put(tmp_path / "scan.tif")
    circle, nowhere, turn = tmp_path / "circle", tmp_path / "gone.png", tmp_path / "turn.png"
    os.symlink(tmp_path, circle)
    os.symlink("nothing.png", nowhere)
    os.symlink("turn.png", turn)  # leads to itself
    linked = tmp_path / "linked.png"
    os.symlink(image, linked)
    assert find_images(tmp_path) == ([image, deep, linked], [circle, nowhere, scan, turn])
