from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.texts.sentence_vectors import SentenceVectors
from mofi_lightning.types import InputError

WORDS = {"cat": [3.0, 4.0], "dog": [0.0, 2.0], "car": [5.0, 0.0]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Word vectors of two dimensions, in the form of the packages that hold them."""
    folder = tmp_path_factory.mktemp("words")
    pq.write_table(pa.table({"word": list(WORDS)}), folder / "tiny_index.parquet")
    np.save(folder / "tiny_emb.npy", np.array(list(WORDS.values()), dtype=np.float32))
    return folder


def test_cosines_are_those_of_the_model_s_vectors(model: Path) -> None:
    vectors = SentenceVectors(str(model))

    assert vectors.cosines("cat", ["cat", "dog", "car"]) == pytest.approx([1.0, 0.8, 0.6])
    dog_and_car = np.array([2.5, 1.0]) / np.hypot(2.5, 1.0)
    assert vectors.cosines("cat", ["dog car"]) == pytest.approx([0.6 * dog_and_car[0] + 0.8 * dog_and_car[1]])


def test_a_text_of_unknown_words_is_near_nothing(model: Path) -> None:
    assert SentenceVectors(str(model)).cosines("zebra", ["cat", "zebra"]) == [0.0, 0.0]


def test_a_vector_is_the_same_whatever_was_embedded_before(model: Path) -> None:
    first, second = SentenceVectors(str(model)), SentenceVectors(str(model))
    second.cosines("car", ["dog", "cat dog"])

    np.testing.assert_array_equal(first.vector("cat dog car"), second.vector("cat dog car"))


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere-to-be-found"):
        SentenceVectors("nowhere-to-be-found")
