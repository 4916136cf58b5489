import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.evaluation.datasets import EvaluationSet, PairsFile, at_path
from mofi_lightning.types import InputError


def test_pairs_folder_gives_true_entities_names_and_captions(emoji_slice):
    data = PairsFile(emoji_slice / "test.parquet").open()
    truth = {row["key"]: row for row in pq.read_table(emoji_slice / "truth.parquet").to_pylist()}
    pairs = pq.read_table(emoji_slice / "test.parquet").to_pylist()
    assert [*data.keys] == [pair["key"] for pair in pairs]
    assert data.entities == [truth[key]["entity"] for key in data.keys]
    assert list(data.images) == [pair["image"] for pair in pairs]
    assert [data.classes[label] for label in data.labels()] == data.entities
    assert {entity for _, entity in data.captions} == set(data.classes)
    assert (data.class_names[0], data.classes[0]) in data.captions
    assert data.notes == ()


def test_fingerprint_follows_content_and_not_the_path(emoji_slice):
    first = at_path(emoji_slice / "test.parquet").open()
    again = at_path(emoji_slice / "test.parquet").open()
    other = at_path(emoji_slice / "train.parquet").open()
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_pairs_that_the_truth_does_not_know_are_counted(tmp_path, emoji_slice):
    pairs = pq.read_table(emoji_slice / "test.parquet")
    pq.write_table(pairs, tmp_path / "test.parquet")
    truth = pq.read_table(emoji_slice / "truth.parquet").to_pylist()
    keys = {*pairs["key"].to_pylist()[:3]}
    pq.write_table(
        pa.Table.from_pylist([row for row in truth if row["key"] not in keys]), tmp_path / "truth.parquet"
    )
    data = PairsFile(tmp_path / "test.parquet").open()
    assert len(data.keys) == len(pairs) - 3
    assert f"3 of {len(pairs)} images are left out: truth.parquet says nothing of them" in data.notes


def test_pairs_without_truth_or_with_a_wrong_column_are_named(tmp_path, emoji_slice):
    pairs = tmp_path / "test.parquet"
    with pytest.raises(InputError, match=r"no pairs file at .*`mofi pairs` writes"):
        PairsFile(pairs).open()
    pq.write_table(pq.read_table(emoji_slice / "test.parquet"), pairs)
    with pytest.raises(InputError, match=r"truth.parquet is missing"):
        PairsFile(pairs).open()
    pq.write_table(pq.read_table(emoji_slice / "truth.parquet"), tmp_path / "truth.parquet")
    pq.write_table(pa.table({"key": ["a"], "photo": [b""]}), pairs)
    with pytest.raises(InputError, match=r"has no column 'image' \(it has key, photo\)"):
        PairsFile(pairs).open()
    pairs.write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"test.parquet is no parquet file, or damaged"):
        PairsFile(pairs).open()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"keys": [], "images": [], "entities": []}, "has no images"),
        ({"keys": ["a", "b", "a"]}, "has keys more than once: a"),
        ({"entities": ["x", "y"]}, "has 3 keys and 2 entities"),
        ({"captions": [("a z", "z"), ("an x", "x")]}, "captions of what it does not show or name: z$"),
        ({"images": [b""]}, "has 3 keys and 1 images"),
        ({"domains": ["x"]}, "has 3 keys and 1 domains"),
        ({"queries": [0, 3]}, "2 queries of 3 images.*: 3$"),
        ({"queries": [1, 1]}, "twice there: 1$"),
        ({"queries": []}, "0 queries of 3 images"),
    ],
)
def test_a_set_that_does_not_fit_together_is_refused(columns, message):
    whole = {"name": "s", "keys": ["a", "b", "c"], "images": [b"", b"", b""], "entities": ["x", "x", "y"]}
    EvaluationSet(**whole)
    with pytest.raises(InputError, match=f"data set s .*{message}"):
        EvaluationSet(**whole | columns)
