import pytest
from tests.evaluation.datasets.pictures import put

from mofi_lightning.evaluation.datasets import GPR1200
from mofi_lightning.types import InputError


def test_six_domains_of_two_hundred_categories_in_the_order_of_numbers(tmp_path):
    for category in (1199, 0, 200, 199):
        for name in ("a", "b_c"):
            put(tmp_path / f"{category}_{name}.jpg")
    data = GPR1200(tmp_path).open()
    assert data.classes == ["0000", "0199", "0200", "1199"]
    assert data.entities == ["0000", "0000", "0199", "0199", "0200", "0200", "1199", "1199"]
    assert data.domains == ["Landmarks"] * 4 + ["iNaturalist"] * 2 + ["Faces"] * 2
    assert data.notes == (
        "4 of GPR1200's 1,200 categories are there",
        "4 categories have not the 10 images of GPR1200's: 0000 has 2, 0199 has 2, 0200 has 2, 1199 has 2",
    )


def test_a_whole_copy_has_no_notes_and_may_lie_in_images(tmp_path):
    (tmp_path / "images").mkdir()
    for category in range(1200):
        for number in range(10):
            (tmp_path / "images" / f"{category}_{number}.jpg").touch()
    data = GPR1200(tmp_path).open()
    assert len(data.keys) == 12_000 and data.notes == () and data.name == tmp_path.name
    assert [data.domains.count(domain) for domain in dict.fromkeys(data.domains)] == [2000] * 6
    (tmp_path / "images" / "7_3.jpg").unlink()
    assert GPR1200(tmp_path).open().notes == ("1 categories have not the 10 images of GPR1200's: 0007 has 9",)


def test_other_sets_with_such_names_have_no_domains(tmp_path):
    for name in ("3_a.jpg", "1200_b.jpg", "._3_a.jpg", "cover.jpg"):
        put(tmp_path / name)
    data = GPR1200(tmp_path).open()
    assert data.domains is None and data.classes == ["0003", "1200"]
    assert data.notes == ("1 images are not called CATEGORY_NAME: cover.jpg",)


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"GPR1200 is not at .*https://visual-computing.com/project/GPR1200"):
        GPR1200(tmp_path / "nowhere").open()
    with pytest.raises(InputError, match=r"no image called CATEGORY_NAME.jpg.*https://"):
        GPR1200(tmp_path).open()
