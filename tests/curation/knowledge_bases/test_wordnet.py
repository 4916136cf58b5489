from pathlib import Path

import pytest

from mofi_lightning.curation.knowledge_bases.wordnet import WordNetReader
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

# in the form of WordNet 3.1's files: licence, then synsets
NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE, by  
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is perceived to exist  
02086723 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 003 @ 00001740 n 0000 @ 00001930 n 0000 \
#m 02086515 n 0000 | a member of the genus Canis; "the dog barked"  
02097711 05 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @i 02086723 n 0000 | ten lemmas | one gloss  
"""
SENSES = """\
dog%1:05:00:: 02086723 1 42
domestic_dog%1:05:00:: 02086723 1 3
dog%2:38:00:: 02086723 1 100
entity%1:03:00:: 00001740 1 11
"""


def _database(folder: Path, nouns: str = NOUNS, senses: str = SENSES) -> Path:
    folder.mkdir()
    (folder / "data.noun").write_text(nouns)
    (folder / "index.sense").write_text(senses)
    return folder


@pytest.mark.parametrize("inner", ["", "dict"])
def test_noun_synsets_become_entities(inner: str, tmp_path: Path) -> None:
    _database(tmp_path / (inner or "wordnet"))
    reader = WordNetReader(tmp_path / ("" if inner else "wordnet"))

    assert list(reader.entities()) == [
        Entity("n00001740", "entity", (), "that which is perceived to exist", 11.0),
        Entity(
            "n02086723",
            "dog",
            ("domestic dog", "Canis familiaris"),
            'a member of the genus Canis; "the dog barked"',
            45.0,
            ("n00001740", "n00001930"),
        ),
        Entity("n02097711", "a", tuple("bcdefghij"), "ten lemmas | one gloss", 0.0, ("n02086723",)),
    ]
    assert not reader.faults.counts


def test_lines_in_another_form_are_reported_and_left_out(tmp_path: Path) -> None:
    bad = ["", "garbage", "00000001 03 v 01 run 0 000 | a verb", "00000001 03 n 02 x 0 000 | one word of two"]
    folder = _database(tmp_path / "dict", NOUNS + "\n".join(bad), SENSES + "dog%1:05:00:: 02086723 1 many\n")
    reader = WordNetReader(folder)

    assert len(list(reader.entities())) == 3
    assert reader.faults.counts == {"no synset": 4, "no sense": 1}
    assert reader.faults.examples[0].startswith("index.sense, line 5: no sense")
    assert reader.faults.examples[1].startswith("data.noun, line 5: no synset")


def test_without_sense_counts_popularity_is_unknown(tmp_path: Path) -> None:
    (_database(tmp_path / "dict") / "index.sense").unlink()

    assert {entity.popularity for entity in WordNetReader(tmp_path).entities()} == {0.0}


def test_a_folder_without_nouns_is_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*data\.noun"):
        list(WordNetReader(tmp_path).entities())
