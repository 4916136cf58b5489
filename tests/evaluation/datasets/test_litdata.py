import pytest
from tests.evaluation.datasets.pictures import picture

from mofi_lightning.data.schema import Row
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.evaluation.datasets import LitData
from mofi_lightning.types import InputError


def _write(path, rows):
    vocabulary = EntityVocabulary.from_columns(
        ["Q1", "Q2", "Q3"], ["crane", "owl", "auk"], ["a bird", "", ""], [1, 1, 1]
    )
    write_dataset(rows, path, vocabulary)
    return path


def test_rows_show_their_best_entity_with_its_name_and_description(tmp_path):
    images = [picture((n, 0, 0)) for n in range(5)]
    labels = [((0,), (0.2,)), ((), ()), ((1, 0), (0.1, 0.9)), ((1, 0), (0.5, 0.5)), ((1,), (1.0,))]
    rows = [Row(f"k{n}", images[n], "t", *label) for n, label in enumerate(labels)]
    data = LitData(str(_write(tmp_path / "set", rows))).open()
    assert data.keys == ["k0", "k2", "k3", "k4"] and data.entities == ["Q1", "Q1", "Q2", "Q2"]
    assert [*data.images] == [images[n] for n in (0, 2, 3, 4)] == data.images[:]
    assert data.names == {"Q1": "crane", "Q2": "owl"} and data.descriptions == {"Q1": "a bird"}
    assert data.captions == [("crane", "Q1"), ("crane, a bird", "Q1"), ("owl", "Q2")]
    assert data.notes == (
        "1 of 5 rows have no entity and are left out",
        "2 images show several entities; that of the highest score counts",
    )


def test_sets_without_entities_are_refused(tmp_path):
    write_dataset([Row("a", picture(), "t")], tmp_path / "plain")
    with pytest.raises(InputError, match="carry no entities; `mofi curate` finds them"):
        LitData(str(tmp_path / "plain")).open()
    with pytest.raises(InputError, match=r"no row of .* has an entity"):
        LitData(str(_write(tmp_path / "bare", [Row("a", picture(), "t")]))).open()
    with pytest.raises(InputError, match="no data set at"):
        LitData(str(tmp_path / "nowhere")).open()


def test_a_damaged_row_is_refused_and_never_left_out_silently(tmp_path):
    path = _write(tmp_path / "set", [Row(f"k{n}", picture((n, 9, 9)), "t", (0,), (1.0,)) for n in range(3)])
    (chunk,) = (path / "shards").glob("chunk-*.bin")
    content = bytearray(chunk.read_bytes())
    place = content.index(b"IDAT")
    content[place + 8] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(
        InputError, match=r"does not match its checksum; `mofi data verify .* --clean FOLDER`"
    ):
        LitData(str(path)).open()
