import json
from pathlib import Path
from typing import Any

import pytest

from mofi_lightning.curation.knowledge_bases.name_suggestion_index import NameSuggestionIndexReader
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

WIKIDATA = {
    "Q2": {"label": "Shell", "description": "oil company"},
    "Q1": {"description": "a record without a label"},
    "Q9": {"label": "Nowhere"},
}
INDEX = {
    "brands/amenity/fuel": {
        "properties": {},
        "items": [
            {
                "displayName": "Shell",
                "id": "shell-1",
                "matchNames": ["shell garage"],
                "tags": {
                    "amenity": "fuel",
                    "brand": "Shell",
                    "brand:ja": "シェル",
                    "brand:wikidata": "Q2",
                    "name": "Shell Station",
                    "name:zh-Hant": "殼牌",
                    "operator": "Coles",
                    "operator:wikidata": "Q1",
                    "not:brand:wikidata": "Q666",
                },
            },
            {"displayName": "Shell", "tags": {"brand": "Shell", "brand:wikidata": "Q2"}},
            {"displayName": "Independent", "tags": {"name": "Independent"}},
        ],
    },
    "brands/shop/car_repair": {
        "items": [{"displayName": "Shell Autoserv", "tags": {"brand:wikidata": "Q2", "brand:type": "x"}}]
    },
    "operators/amenity/school": {
        "items": [
            {
                "displayName": "Coles Group",
                "tags": {"operator": "Coles Group", "operator:short": "CG", "operator:wikidata": "Q1"},
            }
        ]
    },
}


def _package(folder: Path, wikidata: Any = WIKIDATA, index: Any = INDEX) -> Path:
    for file, content in (
        ("dist/wikidata/wikidata.min.json", {"_meta": {}, "wikidata": wikidata}),
        ("dist/json/nsi.min.json", {"_meta": {}, "nsi": index}),
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content))
    return folder


def test_items_of_one_wikidata_id_are_one_entity(tmp_path: Path) -> None:
    reader = NameSuggestionIndexReader(_package(tmp_path))

    assert list(reader.entities()) == [
        Entity(
            "Q1",
            "Coles",
            ("Coles Group", "CG"),
            "a record without a label; fuel, school",
            2.0,
            ("amenity=fuel", "amenity=school"),
        ),
        Entity(
            "Q2",
            "Shell",
            ("シェル", "Shell Station", "殼牌", "shell garage", "Shell Autoserv"),
            "oil company; fuel, car repair",
            3.0,
            ("amenity=fuel", "shop=car_repair"),
        ),
        Entity("Q9", "Nowhere"),
    ]
    assert reader.faults.counts == {"item without a Wikidata id": 1}


def test_what_is_in_another_form_is_reported_and_left_out(tmp_path: Path) -> None:
    items = [
        {"displayName": "x"},
        {"displayName": "y", "tags": {"brand": "y", "brand:wikidata": "Q5"}},
        {"displayName": "z", "tags": {"brand": "z", "brand:wikidata": ["Q6"]}},
        {"displayName": 7, "tags": {"brand": "z", "brand:wikidata": "Q6"}},
    ]
    reader = NameSuggestionIndexReader(
        _package(tmp_path, {"Q7": {"label": 7}}, {"brands/shop/toys": {"items": items}})
    )

    assert list(reader.entities()) == [Entity("Q5", "y", (), "toys", 1.0, ("shop=toys",))]
    assert reader.faults.counts == {"not in the form of an item": 3, "not in the form of a record": 1}
    assert (
        reader.faults.examples[0] == "brands/shop/toys, item 0: not in the form of an item (KeyError('tags'))"
    )
    assert reader.faults.examples[3] == "Q7: not in the form of a record (7 is no text)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no dist/wikidata/wikidata.min.json in .* give the folder of the npm package"),
        ("{", r"wikidata\.min\.json is no JSON"),
        ("[" * 100_000, r"wikidata\.min\.json is no JSON"),
        ("[]", r"wikidata\.min\.json is not in the form of the name-suggestion-index"),
        ('{"wikidata": {"Q1": 5}}', r"wikidata\.min\.json is not in the form"),
    ],
)
def test_another_folder_is_explained(content: str | None, message: str, tmp_path: Path) -> None:
    file = _package(tmp_path) / "dist/wikidata/wikidata.min.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with pytest.raises(InputError, match=message):
        list(NameSuggestionIndexReader(tmp_path).entities())
