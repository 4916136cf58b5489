import pytest
from tests.evaluation.datasets.pictures import picture, put

from mofi_lightning.data.schema import Row
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.evaluation.datasets import at_path
from mofi_lightning.types import InputError

FILES = {
    "GPR1200": ["0_a.jpg", "1199_b.jpg"],
    "GPR1200 in images": ["images/0_a.jpg", "README.md"],
    "ImageNet": ["val/n01440764/1.JPEG"],
    "ImageNet flat": ["val/ILSVRC2012_val_00000001.JPEG"],
    "ClassFolders": ["cat/1.png", "dog/2.png"],
    "ClassFolders with splits": ["test/cat/1.png", "train/cat/2.png"],
    "ClassFolders deep": ["cat/wild/1.png"],
    "WebDataset": ["test/0.tar", "classnames.txt"],
    "HuggingFace": ["dataset_dict.json"],
}


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_is_recognised_by_its_files(tmp_path, kind):
    for name in FILES[kind]:
        put(tmp_path / name)
    assert type(at_path(tmp_path)).__name__ == kind.split()[0]


def test_files_and_data_sets_of_ours_are_recognised(tmp_path, emoji_slice):
    assert type(at_path(str(emoji_slice / "test.parquet"))).__name__ == "PairsFile"
    assert type(at_path(put(tmp_path / "dataset_coco.json", "{}"))).__name__ == "CaptionsFile"
    vocabulary = EntityVocabulary.from_columns(["Q1"], ["crane"], [""], [1])
    write_dataset([Row("a", picture(), "t", (0,), (1.0,))], tmp_path / "i2e", vocabulary)
    assert at_path(tmp_path / "i2e").open().class_names == ["crane"]


def test_what_is_not_recognised_is_told_what_would_be(tmp_path, emoji_slice):
    with pytest.raises(
        InputError, match=r"no evaluation set at the path .*mofi pairs.*GPR1200.*ImageNet.*test/0.tar"
    ):
        at_path(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no evaluation set; give the parquet"):
        at_path(tmp_path)
    with pytest.raises(InputError, match="is no evaluation set"):
        at_path(put(tmp_path / "a.txt"))
    with pytest.raises(
        InputError, match=r"holds several splits; give the parquet of one, such as .*test.parquet"
    ):
        at_path(emoji_slice)
