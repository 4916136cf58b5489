import bz2
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mofi_lightning.curation.knowledge_bases.wikidata import WIKIMEDIA_PAGES, WikidataReader
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError


def _texts(**languages: str) -> dict[str, Any]:
    return {code: {"language": code, "value": value} for code, value in languages.items()}


def _statement(value: Any, rank: str = "normal") -> dict[str, Any]:
    snak = {
        "snaktype": "value",
        "property": "P31",
        "datavalue": {"value": value, "type": "wikibase-entityid"},
    }
    return {"mainsnak": snak if value else {"snaktype": "somevalue", "property": "P31"}, "rank": rank}


def _item(id: str, sitelinks: int = 0, types: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "item",
        "id": id,
        "labels": _texts(en=f"name of {id}"),
        "descriptions": {},
        "aliases": [],
        "claims": {"P31": [_statement({"id": type, "numeric-id": 0}) for type in types]} if types else [],
        "sitelinks": {
            f"w{n}wiki": {"site": f"w{n}wiki", "title": id, "badges": []} for n in range(sitelinks)
        },
        **fields,
    }


def _dump(folder: Path, *entities: Any, name: str = "dump.json") -> Path:
    """A dump as Wikidata writes it; entities that are bytes are lines as they are."""
    lines = [e if isinstance(e, bytes) else json.dumps(e, separators=(",", ":")).encode() for e in entities]
    content = b"[\n" + b",\n".join(lines) + b"\n]\n"
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)
    (folder / name).write_bytes(compress(content))
    return folder / name


BELGIUM = _item(
    "Q31",
    sitelinks=3,
    labels=_texts(en="Belgium", de="Belgien", fr="Belgique"),
    descriptions=_texts(en="country in Europe", de="Staat"),
    aliases={
        "en": [{"language": "en", "value": "Kingdom of Belgium"}, {"language": "en", "value": "BEL"}],
        "de": [{"language": "de", "value": "Königreich Belgien"}],
        "mul": [{"language": "mul", "value": "BEL"}, {"language": "mul", "value": "Belgium"}],
    },
    claims={
        "P31": [
            _statement({"entity-type": "item", "numeric-id": 6256, "id": "Q6256"}),
            _statement({"entity-type": "item", "numeric-id": 3624078}),
            _statement({"id": "Q1"}, rank="deprecated"),
            _statement(None),
            _statement({"id": "Q6256"}),
        ],
        "P17": [_statement({"id": "Q31"})],
    },
)


@pytest.mark.parametrize("name", ["dump.json", "dump.json.gz", "dump.json.bz2"])
def test_an_item_becomes_an_entity_with_sitelinks_as_popularity(name: str, tmp_path: Path) -> None:
    reader = WikidataReader(_dump(tmp_path, BELGIUM, _item("Q42"), name=name))

    assert list(reader.entities()) == [
        Entity(
            "Q31", "Belgium", ("Kingdom of Belgium", "BEL"), "country in Europe", 3.0, ("Q6256", "Q3624078")
        ),
        Entity("Q42", "name of Q42"),
    ]
    assert not reader.faults.counts


def test_languages_are_taken_in_the_order_given(tmp_path: Path) -> None:
    person = _item("Q1", labels=_texts(mul="Ada"), descriptions=_texts(fr="mathématicienne"))
    path = _dump(tmp_path, BELGIUM, person, _item("Q2", labels=[], aliases=[], descriptions=[]))

    german = WikidataReader(path, language="de", fallbacks=("en",))
    assert [(e.name, e.aliases, e.description) for e in german.entities()] == [
        ("Belgien", ("Belgium", "Königreich Belgien", "Kingdom of Belgium", "BEL"), "Staat")
    ]
    assert german.faults.counts == {"no label in de or en": 2}

    french = WikidataReader(path, language="fr")
    assert [(e.name, e.description) for e in french.entities()] == [
        ("Belgique", ""),
        ("Ada", "mathématicienne"),
    ]


def test_a_blank_label_is_none(tmp_path: Path) -> None:
    texts = _texts(en="", mul="Ada")
    reader = WikidataReader(_dump(tmp_path, _item("Q1", labels=texts, descriptions=texts)))

    assert list(reader.entities()) == [Entity("Q1", "Ada", (), "Ada")]


def test_what_is_read_does_not_depend_on_other_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orjson", SimpleNamespace(loads=int))
    reader = WikidataReader(_dump(tmp_path, b'{"id":"Q1","labels":{"en":{"value":"a \\ud800"}}}'))

    assert [entity.name for entity in reader.entities()] == ["a \ud800"]


def test_blocks_of_tiny_lines_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.wikidata._BLOCK_BYTES", 12_800)
    reader = WikidataReader(_dump(tmp_path, *[b"0"] * 1_000))

    assert max(len(block.lines) for block in reader._blocks()) <= 100


@pytest.mark.parametrize("line", [b'{"id":"Q2",}', b'{"id":"Q2","labels":{}', b'{"id":"Q\xff"}', b"[]"])
def test_bad_lines_are_told_however_many_sitelinks_are_asked_for(line: bytes, tmp_path: Path) -> None:
    reader = WikidataReader(_dump(tmp_path, _item("Q1"), line), min_sitelinks=5)

    assert list(reader.entities()) == []
    assert reader.faults.counts["fewer sitelinks than asked for"] == 1
    assert reader.faults.examples[0].startswith("line 3: no")


def test_filters_keep_what_was_asked_for_and_count_the_rest(tmp_path: Path) -> None:
    path = _dump(
        tmp_path,
        _item("Q1", sitelinks=2, types=("Q515", "Q5119")),
        _item("Q2", sitelinks=2, types=("Q5",)),
        _item("Q3", sitelinks=2, types=("Q515", WIKIMEDIA_PAGES[0])),
        _item("Q4", sitelinks=1, types=("Q515",)),
        # as many "site" as Q1, but not among its sitelinks
        _item("Q5", sitelinks=1, types=("Q515",), aliases={"en": [{"value": "site"}]}),
        {"type": "property", "id": "P31", "labels": _texts(en="x"), "sitelinks": BELGIUM["sitelinks"]},
        {"type": "lexeme", "id": "L1", "lemmas": {}, "note": ["site", "site"]},
        {"type": "x" * 1_000, "id": "X1", "note": ["site", "site"]},
    )

    reader = WikidataReader(path, min_sitelinks=2, types=("Q515",))
    assert [entity.id for entity in reader.entities()] == ["Q1"]
    assert reader.faults.counts == {
        "not an instance of the types to keep": 1,
        "an instance of a type to leave out": 1,
        "fewer sitelinks than asked for": 2,
        "no item but a property": 1,
        "no item but a lexeme": 1,
        "no item": 1,
    }
    assert reader.faults.examples == []
    everything = WikidataReader(path, exclude_types=())
    assert [entity.id for entity in everything.entities()] == ["Q1", "Q2", "Q3", "Q4", "Q5"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (json.dumps(BELGIUM).encode()[:-40], "no JSON"),
        (b'{"type":"item","id":"Q2",}', "no JSON"),
        (json.dumps(BELGIUM).encode().replace(b"Belgium", b"Belg\xffum"), "not UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"id":"Q2","labels":' + b'{"x":' * 90_000 + b"1" + b"}" * 90_001, "nested too deeply"),
        (b"[]", "not in the form of an entity"),
        (b"null", "not in the form of an entity"),
        (b'{"type":"item"}', "not in the form of an entity"),
        (b'{"type":"item","id":7,"labels":{}}', "not in the form of an entity"),
        (b'{"type":"item","id":"Q2","labels":{"en":"x"}}', "not in the form of an entity"),
        (b'{"type":"item","id":"Q2","labels":{"en":{"value":5}}}', "not in the form of an entity"),
        (json.dumps(_item("Q2", claims={"P31": [{}]})).encode(), "not in the form of an entity"),
        (
            json.dumps(_item("Q2", claims={"P31": [_statement({"id": 5})]})).encode(),
            "not in the form of an entity",
        ),
        (b'{"type":"item","id":"Q2","pad":"' + b"x" * 10_000_000 + b'"}', "line longer than 8,388,608 bytes"),
    ],
)
def test_a_bad_line_is_reported_by_its_number_and_left_out(line: bytes, fault: str, tmp_path: Path) -> None:
    reader = WikidataReader(_dump(tmp_path, _item("Q1"), line, _item("Q3")))

    assert [entity.id for entity in reader.entities()] == ["Q1", "Q3"]
    assert reader.faults.counts == {fault: 1}
    assert reader.faults.examples[0].startswith(f"line 3: {fault}")
    assert len(reader.faults.examples[0]) < 250


def test_a_dump_that_is_cut_off_gives_its_whole_lines_and_says_so(tmp_path: Path) -> None:
    whole = _dump(tmp_path, _item("Q1"), _item("Q2"), _item("Q3")).read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[:-30])
    reader = WikidataReader(tmp_path / "cut.json")

    assert [entity.id for entity in reader.entities()] == ["Q1", "Q2"]
    assert reader.faults.counts == {"no JSON": 1, "the dump ends before its closing bracket": 1}
    assert reader.faults.examples[1].startswith("line 4: no JSON")
    assert reader.faults.examples[0].startswith("line 5: the dump ends")


def test_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.wikidata._BLOCK_BYTES", 2_000)
    items = [_item(f"Q{n}", sitelinks=n % 4) if n % 7 else b"{" for n in range(100)]
    items[98] = b"{" + b"x" * (1 << 23)
    path = _dump(tmp_path, *items, name="dump.json.gz")
    alone, many = (WikidataReader(path, min_sitelinks=1, num_workers=workers) for workers in (0, 2))

    assert [entity.id for entity in alone.entities()] == [f"Q{n}" for n in range(100) if n % 7 and n % 4]
    assert list(many.entities()) == list(WikidataReader(path, min_sitelinks=1).entities())
    assert (many.faults.counts, many.faults.examples) == (alone.faults.counts, alone.faults.examples)
    assert len(many.faults.examples) == 15
    assert many.faults.counts["no JSON"] == 14


def test_options_out_of_range_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="min_sitelinks -1 is out of range"):
        WikidataReader(tmp_path, min_sitelinks=-1)
    with pytest.raises(InputError, match="'city' is no id of a class of Wikidata"):
        WikidataReader(tmp_path, types=("city",))
