import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.evaluation.datasets.hierarchy import read_hierarchy
from mofi_lightning.types import InputError

ANIMALS = Path(__file__).parents[1] / "data" / "wordnet_animals"
PAIRS = [("dog", "canine"), ("dog", "pet"), ("canine", "animal"), ("pet", "animal"), ("dog", "pet")]
WANT = {"dog": ["canine", "pet"], "canine": ["animal"], "pet": ["animal"]}


def test_wordnets_files_give_the_hypernyms_of_nouns():
    found = read_hierarchy(ANIMALS)
    # WordNet 3.0: the dog is a canine and a domestic animal, the tabby a domestic cat
    assert found["n02084071"] == ["n02083346", "n01317541"]
    assert found["n02123045"] == ["n02121808"]
    assert "n00001740" not in found  # entity is above all
    assert len(found) == 188


@pytest.mark.parametrize("inner", ["", "dict"])
def test_wordnets_pointers_are_told_apart(inner, tmp_path):
    (tmp_path / inner).mkdir(exist_ok=True)
    (tmp_path / inner / "data.noun").write_text(
        "  1 the licence  \n"
        "02097711 05 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 @ 0 002 @i 02086723 n 0000 ~ 00000001 n 0000 "
        "| @ 1 | x  \n"
    )
    assert read_hierarchy(tmp_path) == {"n02097711": ["n02086723"]}


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables_hold_a_line_for_each_category(kind, tmp_path):
    file = tmp_path / f"kinds.{kind}"
    if kind == "parquet":
        entities, categories = zip(*PAIRS, strict=True)
        pq.write_table(pa.table({"category": categories, "more": entities, "entity": entities}), file)
    else:
        tab = "\t" if kind == "tsv" else ","
        lines = [tab.join((category, "x", entity)) for entity, category in [("entity", "category"), *PAIRS]]
        file.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\r\n").encode())
    assert read_hierarchy(file) == WANT


def test_a_cycle_is_told(tmp_path, caplog):
    file = tmp_path / "kinds.csv"
    file.write_text("entity,category\na,b\nb,c\nc,b\n")
    with caplog.at_level(logging.WARNING):
        assert read_hierarchy(file) == {"a": ["b"], "b": ["c"], "c": ["b"]}
    assert "has a cycle" in caplog.text and "b > c > b" in caplog.text.replace("c > b > c", "b > c > b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("kinds.csv", b"", r"begins with nothing"),
        ("kinds.csv", b"child,parent\na,b\n", r"begins with child, parent; a hierarchy has the columns"),
        ("kinds.csv", b"entity,category\n", r"is empty"),
        ("kinds.csv", b"entity,category\na,b\na,\n", r"entry 2 .* has no category"),
        ("kinds.tsv", b"entity\tcategory\n\tb\n", r"entry 1 .* has no entity"),
        ("kinds.csv", b"entity,category\na,b,c\n", r"line 2 .* has 3 fields, not 2"),
        ("kinds.csv", b"entity,category\n\xff\xfe,b\n", r"is no UTF-8 table"),
        ("kinds.parquet", b"no parquet", r"is no parquet file"),
        ("kinds.json", b"{}", r"is no \.csv, \.tsv or \.parquet file"),
        ("data.noun", b"00000001 03 v 01 run 0 000 | a verb\n", r"line 1 .* is no noun of WordNet"),
        (
            "data.noun",
            b"00000001 03 n 01 x 0 002 @ 00000002 n 0000 | cut\n",
            r"line 1 .* is no noun of WordNet",
        ),
        ("data.noun", b"  1 the licence\n", r"is empty"),
        ("other", b"", r"has no data\.noun"),
    ],
)
def test_what_is_no_hierarchy_is_explained(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_hierarchy(tmp_path / name if "." in name and name != "data.noun" else tmp_path)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none"])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(InputError, match=name):
        read_hierarchy(tmp_path / name)
