from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.knowledge_base import KnowledgeBase, normalise, words
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dog", "dog"),
        ("  a\tDOG,\nface!", "a dog face"),
        ("St. Bernard-dog_face", "st bernard dog face"),
        ("the dog's bone", "the dog bone"),
        ("the dog\u2019s bone", "the dog bone"),
        ("the dogs' bones", "the dog bone"),
        ("O'Neill", "oneill"),
        ("\uff24\uff2f\uff27", "dog"),  # full width
        ("STRASSE", normalise("stra\u00dfe")),
        ("ﬁsh", "fish"),
        ("", ""),
        ("!?", ""),
        ("7 dwarfs", "7 dwarf"),
    ],
)
def test_spelling_variants_have_one_form(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("dog", "dogs"),
        ("berry", "berries"),
        ("cookie", "cookies"),
        ("pie", "pies"),
        ("box", "boxes"),
        ("axe", "axes"),
        ("match", "matches"),
        ("headache", "headaches"),
        ("brush", "brushes"),
        ("glass", "glasses"),
        ("house", "houses"),
        ("prize", "prizes"),
    ],
)
def test_singular_and_plural_meet(singular: str, plural: str) -> None:
    assert normalise(singular) == normalise(plural)


@pytest.mark.parametrize("word", ["glass", "bus", "paris", "gas", "is"])
def test_words_that_only_look_like_plurals_keep_their_ending(word: str) -> None:
    assert words(word) == [word]


def test_candidates_are_those_of_a_scan_over_all_entities() -> None:
    entities = [
        Entity("Q3", "Dog face", ("dog", "pets", "Puppy")),
        Entity("Q1", "Dog", ("pet", "dogs")),
        Entity("Q2", "", ("nameless",)),
    ]
    base = KnowledgeBase.from_entities(entities)

    everything = {normalise(alias) for e in entities for alias in (e.name, *e.aliases)} - {""}
    expected = {
        alias: tuple(
            row for row, e in enumerate(entities) if alias in {normalise(a) for a in (e.name, *e.aliases)}
        )
        for alias in everything
    }

    assert base.candidates == expected
    assert base.candidates["pet"] == (0, 1)
    assert base.rows == {"Q3": 0, "Q1": 1, "Q2": 2}


def test_a_written_knowledge_base_is_read_back(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"id": "Q1", "name": "cat", "aliases": ["kitty", None], "description": None}])

    assert KnowledgeBase.load(path).entities == (Entity("Q1", "cat", ("kitty",), ""),)


def test_faulty_knowledge_bases_are_explained(tmp_path: Path) -> None:
    row = {"id": "Q1", "name": "cat", "aliases": [], "description": ""}
    with pytest.raises(InputError, match="no knowledge base at "):
        KnowledgeBase.load(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="no column 'aliases', 'description'"):
        KnowledgeBase.load(_write(tmp_path, [{"id": "Q1", "name": "cat"}]))
    with pytest.raises(InputError, match="'Q1' is empty or occurs twice"):
        KnowledgeBase.load(_write(tmp_path, [row, row]))
    with pytest.raises(InputError, match="has no rows"):
        KnowledgeBase.load(_write(tmp_path, [row], rows=0))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="is no parquet file, or damaged"):
        KnowledgeBase.load(tmp_path / "text.parquet")


def _write(folder: Path, entities: list[dict[str, object]], rows: int = 10) -> Path:
    pq.write_table(pa.Table.from_pylist(entities).slice(0, rows), folder / "knowledge_base.parquet")
    return folder / "knowledge_base.parquet"
