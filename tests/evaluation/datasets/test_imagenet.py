import numpy as np
import pytest
from scipy.io import savemat
from tests.evaluation.datasets.pictures import put

from mofi_lightning.evaluation.datasets import ImageNet, ImageNetRetrieval
from mofi_lightning.evaluation.datasets.class_tables import read_imagenet_names
from mofi_lightning.types import InputError

TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"


def test_validation_images_query_what_train_teaches(tmp_path):
    for wnid, image in ((TENCH, 1), (TENCH, 3), (SHARK, 2), (SHARK, 4)):
        put(tmp_path / "val" / wnid / f"ILSVRC2012_val_0000000{image}.JPEG")
    put(tmp_path / "train" / TENCH / f"{TENCH}_1.JPEG")
    put(tmp_path / "train" / GOLDFISH / f"{GOLDFISH}_1.JPEG")
    data = ImageNet(tmp_path).open()
    assert data.names == {TENCH: "tench", GOLDFISH: "goldfish", SHARK: "great white shark"}
    assert data.entities == [TENCH, TENCH, SHARK, SHARK]
    assert data.fit.entities == [TENCH, GOLDFISH]
    assert data.notes == (
        "3 of 1,000 classes are there; the others are no candidates",
        f"1 of 3 classes has no image and is a candidate only: {GOLDFISH}",
    )
    assert ImageNet(tmp_path, fit=None).open().classes == [TENCH, SHARK]


def test_a_missing_train_folder_is_told(tmp_path):
    put(tmp_path / "val" / TENCH / "1.JPEG")
    data = ImageNet(tmp_path).open()
    assert data.fit is None
    assert f"there is no {tmp_path / 'train'}: no images to learn from" in data.notes


def test_all_thousand_classes_have_openais_names(tmp_path):
    names = read_imagenet_names()
    assert len(names) == 1000 and [*names][:2] == [TENCH, GOLDFISH]
    for wnid in names:
        put(tmp_path / "val" / wnid / "1.JPEG", b"")
    data = ImageNet(tmp_path, fit=None).open()
    assert data.names == names
    assert "1,000 of 50,000 validation images are there" in data.notes


def test_folders_of_other_classes_are_told_or_refused(tmp_path):
    put(tmp_path / "val" / TENCH / "1.JPEG")
    put(tmp_path / "val" / "n99999999" / "1.JPEG")
    data = ImageNet(tmp_path, fit=None).open()
    assert data.names["n99999999"] == "n99999999"
    assert "1 folders are no classes of ImageNet-1k: n99999999" in data.notes
    put(tmp_path / "other" / "cat" / "1.JPEG")
    with pytest.raises(InputError, match="no folder called as ImageNet's classes"):
        ImageNet(tmp_path, split="other", fit=None).open()
    with pytest.raises(InputError, match=r"ImageNet is not at .*https://image-net.org"):
        ImageNet(tmp_path / "nowhere").open()


def _flat(tmp_path):
    for number in (1, 2, 3):
        put(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")


def test_a_flat_folder_takes_its_labels_from_kaggles_table(tmp_path):
    _flat(tmp_path)
    with pytest.raises(InputError, match=r"in no folders of their classes.*LOC_val_solution.csv"):
        ImageNet(tmp_path).open()
    table = f"ImageId,PredictionString\nILSVRC2012_val_00000002,{SHARK} 1 2 3 4 {SHARK} 5 6 7 8 \n"
    file = put(tmp_path / "LOC_val_solution.csv", table)
    with pytest.raises(InputError, match="leave out 2 images"):
        ImageNet(tmp_path).open()
    rows = f"ILSVRC2012_val_00000001,{TENCH} 1 2 3 4\nILSVRC2012_val_00000003,{SHARK} 1 2 3 4\n"
    put(file, table + rows)
    assert ImageNet(tmp_path).open().entities == [TENCH, SHARK, SHARK]
    put(file, table + "ILSVRC2012_val_00000001,\n")
    with pytest.raises(InputError, match="no class for ILSVRC2012_val_00000001"):
        ImageNet(tmp_path).open()
    put(file, b"ImageId,PredictionString\n\xff,1\n")
    with pytest.raises(InputError, match=r"LOC_val_solution.csv cannot be read"):
        ImageNet(tmp_path).open()
    put(file, "a,b\n")
    with pytest.raises(InputError, match="no columns ImageId"):
        ImageNet(tmp_path).open()


def test_a_flat_folder_takes_its_labels_from_the_devkit(tmp_path):
    _flat(tmp_path)
    folder = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    put(folder / "ILSVRC2012_validation_ground_truth.txt", "2\n1\n2\n")
    meta = np.zeros(3, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    meta[:] = [(1, TENCH, 0), (2, SHARK, 0), (1001, "n00001740", 5)]
    savemat(folder / "meta.mat", {"synsets": meta})
    assert ImageNet(tmp_path).open().entities == [SHARK, TENCH, SHARK]
    (folder / "meta.mat").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"meta.mat cannot be read"):
        ImageNet(tmp_path).open()


def test_retrieval_has_the_first_image_of_each_class_by_name_as_query(tmp_path):
    for wnid, numbers in ((TENCH, (9, 4, 5)), (GOLDFISH, (7, 8)), (SHARK, (3, 1))):
        for number in numbers:
            put(tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG")
    data = ImageNetRetrieval(tmp_path).open()
    queries = [data.keys[row] for row in data.queries]
    assert queries == [
        f"{TENCH}/ILSVRC2012_val_00000004.JPEG",
        f"{GOLDFISH}/ILSVRC2012_val_00000007.JPEG",
        f"{SHARK}/ILSVRC2012_val_00000001.JPEG",
    ]
    assert data.fit is None and len(data.keys) == 7
