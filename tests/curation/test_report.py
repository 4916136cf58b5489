import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.knowledge_base import KnowledgeBase
from mofi_lightning.curation.report import Report, Step, measure
from mofi_lightning.curation.selection import Candidates
from mofi_lightning.curation.truth import Truth
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

BASE = KnowledgeBase.from_entities(
    [Entity("Q1", "dog", ("puppies",)), Entity("Q2", "hot dog"), Entity("Q3", "cat")]
)
PAIRS = [
    # key, text, what it shows
    ("a", "a Dog", "Q1"),  # names it
    ("b", "my puppy", "Q1"),  # names it by an alias
    ("c", "a hot dog", "Q3"),  # names another
    ("d", "concatenate", "Q3"),  # names nothing: cat is no word of it
    ("e", "cat", None),  # nobody knows
    ("f", "cat", "Q9"),  # not in the knowledge base
    ("g", "hot dog", "Q1"),  # dog stands in it as a word
]


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    pq.write_table(
        pa.table({"key": [p[0] for p in PAIRS], "text": [p[1] for p in PAIRS]}), tmp_path / "train.parquet"
    )
    rows = [{"key": key, "split": "train", "entity": entity} for key, _, entity in PAIRS if entity]
    other = [{"key": "e", "split": "test", "entity": "Q3"}]  # a key of another split says nothing
    pq.write_table(pa.Table.from_pylist(rows + other), tmp_path / "truth.parquet")
    return Truth.load(tmp_path / "truth.parquet", tmp_path / "train.parquet", BASE)


def test_truth_knows_what_is_shown_and_how_many_texts_name_it(truth: Truth) -> None:
    assert truth.shown.tolist() == [0, 0, 2, 2, -1, -2, 0]
    assert truth.named == 3  # a, b, g


def test_measures_are_those_counted_by_hand(truth: Truth) -> None:
    rows, entities = np.array([0, 1, 2, 4, 5, 6, 6]), np.array([0, 1, 1, 2, 2, 0, 1])
    labels = Candidates(rows, entities, np.ones(7, dtype=np.float32))
    kept = np.array([True, True, True, True, True, True, False])

    # right: a, g; wrong: b, c, f; unknown: e. Named by their text: a, b, g. Labelled: all of 7 but d.
    step = measure("step", labels, kept, 7, 6, truth)

    assert step == Step("step", 6, 6, 3, pytest.approx(6 / 7), pytest.approx(2 / 5), pytest.approx(2 / 3))


def test_without_truth_there_are_counts_only(truth: Truth) -> None:
    labels = Candidates(np.array([0, 0]), np.array([0, 1]), np.ones(2, dtype=np.float32))

    assert measure("step", labels, np.ones(2, dtype=bool), 4, 4, None) == Step("step", 4, 2, 2, 0.25)


def test_a_truth_without_its_columns_is_explained(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "truth.parquet")

    with pytest.raises(InputError, match="has no column 'split', 'entity'"):
        Truth.load(tmp_path / "truth.parquet", tmp_path / "train.parquet", BASE)


def test_a_saved_report_lists_the_steps(tmp_path: Path) -> None:
    Report("print", {"damaged": 2}, [Step("step", 6, 5, 3, 0.5, None, 0.25)]).save(tmp_path / "curation.json")

    saved = json.loads((tmp_path / "curation.json").read_text())
    assert saved["undecodable_images"] == {"damaged": 2}
    assert saved["steps"] == [
        {
            "step": "step",
            "rows": 6,
            "labels": 5,
            "entities": 3,
            "coverage": 0.5,
            "precision": None,
            "recall": 0.25,
        }
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["curation.json"]
