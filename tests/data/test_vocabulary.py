import pyarrow as pa
import pytest

from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.types import InputError


def make(ids=("Q1", "Q2", "Q3"), counts=(5, 6, 7)):
    return EntityVocabulary.from_columns(ids, [f"name {i}" for i in ids], ["a pet", "", "bird"], counts)


def test_columns_come_back_after_saving(tmp_path):
    make().save(tmp_path / "v.arrow")
    loaded = EntityVocabulary.load(tmp_path / "v.arrow")
    assert list(loaded.ids) == ["Q1", "Q2", "Q3"]
    assert loaded.names[1] == "name Q2" and loaded.names[-1] == "name Q3"
    assert loaded.descriptions[0:2] == ["a pet", ""]
    assert list(loaded.counts) == [5, 6, 7]
    assert len(loaded) == 3


def test_loading_maps_the_file_instead_of_reading_it(tmp_path):
    n = 200_000
    names = [f"entity number {i}" for i in range(n)]
    EntityVocabulary.from_columns(list(map(str, range(n))), names, [""] * n, [1] * n).save(tmp_path)
    before = pa.total_allocated_bytes()
    loaded = EntityVocabulary.load(tmp_path)
    assert loaded.names[n - 1] == f"entity number {n - 1}"
    assert pa.total_allocated_bytes() - before < 100_000


def test_equality_means_that_class_ids_mean_the_same():
    assert make() == make(counts=(1, 1, 1))
    assert make() != make(ids=("Q2", "Q1", "Q3"))
    assert make().fingerprint == make().fingerprint
    # a boundary moved between identifiers is another list
    assert make(ids=("Q1", "2", "3")).fingerprint != make(ids=("Q", "12", "3")).fingerprint


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((["a", "a"], ["x", "y"], ["", ""], [1, 1]), "'a' appears twice"),
        ((["a", "b"], ["x"], ["", ""], [1, 1]), "equally long"),
    ],
)
def test_columns_that_are_no_vocabulary_are_refused(columns, message):
    with pytest.raises(InputError, match=message):
        EntityVocabulary.from_columns(*columns)


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="no vocabulary at"):
        EntityVocabulary.load(tmp_path)
    (tmp_path / "v.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="is no vocabulary"):
        EntityVocabulary.load(tmp_path / "v.arrow")
