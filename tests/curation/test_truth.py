from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.truth import Truth
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError


@pytest.fixture
def knowledge_base(tmp_path: Path) -> KnowledgeBase:
    entities = [Entity("Q2", "big dog", ("hound",)), Entity("Q1", "cat")]
    build_knowledge_base(entities, tmp_path / "kb")
    return KnowledgeBase(tmp_path / "kb")


def write(file: Path, rows: list[dict[str, str | None]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_what_pairs_show_and_which_texts_name_it(tmp_path: Path, knowledge_base: KnowledgeBase) -> None:
    rows: list[dict[str, str | None]] = [
        {"key": "a", "split": "train", "entity": "Q2"},
        {"key": "b", "split": "train", "entity": "Q1"},
        {"key": "c", "split": "train", "entity": "Q99"},
        {"key": "d", "split": "train", "entity": None},
        {"key": "e", "split": "test", "entity": "Q1"},
    ]
    truth = Truth.load(write(tmp_path / "truth.parquet", rows), ["other", "train"], knowledge_base)
    dog, cat = knowledge_base.row("Q2"), knowledge_base.row("Q1")

    shown = truth.shown(["a", "a", "b", "c", "d", "e", "new"])

    assert shown.tolist() == [dog, dog, cat, -2, -1, -1, -1]
    # "hounds" is an alias; a cat in catalogue is no word; what is outside or unknown cannot be named
    texts = ["two HOUNDS", "a dog", "catalogue", "Q99", "cat", "cat", "cat"]
    assert truth.named(shown, texts) == 1
    assert truth.named(np.array([cat, dog]), ["the cat.", "Big Dogs"]) == 2


def test_a_truth_file_that_cannot_be_used_is_named(tmp_path: Path, knowledge_base: KnowledgeBase) -> None:
    with pytest.raises(InputError, match="no truth file at"):
        Truth.load(tmp_path / "absent.parquet", ["train"], knowledge_base)
    without = write(tmp_path / "without.parquet", [{"key": "a", "split": "train"}])
    with pytest.raises(InputError, match="has no column 'entity'"):
        Truth.load(without, ["train"], knowledge_base)
    other = write(tmp_path / "other.parquet", [{"key": "a", "split": "train", "entity": "Q1"}])
    with pytest.raises(InputError, match="has no split 'test' or 'validation'"):
        Truth.load(other, ["test", "validation"], knowledge_base)
