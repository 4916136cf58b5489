import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mofi_lightning.curation.knowledge_bases.tables import TableReader
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

EXPECTED = [
    Entity("Q1", 'Rock "n" Roll, Inc', ("R&R", "rock"), "a, b", 2.5, ("Q7", "Q8")),
    Entity("Q2", "Kürbis"),
]
JSON_LINES = (
    '{"id": "Q1", "name": "Rock \\"n\\" Roll, Inc", "aliases": ["R&R", "rock", "", null],'
    ' "description": "a, b", "popularity": 2.5, "types": "Q7|Q8", "else": 1}\n\n'
    '{"id": "Q2", "name": "K\\u00fcrbis", "aliases": null}\n'
)
CSV = (
    "\ufeffname,ID,aliases,description,popularity,types\r\n"
    '"Rock ""n"" Roll, Inc",Q1,R&R| rock,"a, b",2.5,Q7|Q8\r\n'
    "Kürbis,Q2,,,,\r\n"
)
TSV = (
    "id\tname\taliases\tdescription\tpopularity\ttypes\n"
    'Q1\tRock "n" Roll, Inc\tR&R|rock\ta, b\t2.5\tQ7|Q8\nQ2\tKürbis\t\t\t\t\n'
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", JSON_LINES.encode()),
        ("x.jsonl.gz", gzip.compress(JSON_LINES.encode())),
        ("x.csv", CSV.encode()),
        ("x.csv.bz2", bz2.compress(CSV.encode())),
        ("x.tsv", TSV.encode()),
        ("my.table.tsv.gz", gzip.compress(TSV.encode())),
    ],
)
def test_every_format_gives_the_same_entities(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    reader = TableReader(tmp_path / name)

    assert list(reader.entities()) == EXPECTED
    assert not reader.faults.counts
    assert reader.count() is None


@pytest.mark.parametrize("types", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_parquet_gives_the_same_entities(types: pa.DataType, tmp_path: Path) -> None:
    rows = [
        {**entity._asdict(), "aliases": list(entity.aliases), "types": list(entity.types)}
        for entity in EXPECTED
    ]
    rows[1] |= dict.fromkeys(("aliases", "description", "popularity", "types"))
    columns = [("id", pa.string()), ("name", pa.string()), ("aliases", types), ("description", pa.string())]
    schema = pa.schema([*columns, ("popularity", pa.float64()), ("types", types)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "x.parquet")
    reader = TableReader(tmp_path / "x.parquet")

    assert list(reader.entities()) == EXPECTED
    assert reader.count() == 2


def test_the_knowledge_base_of_mofi_pairs_is_a_table(emoji_slice: Path) -> None:
    path = emoji_slice / "knowledge_base.parquet"
    reader = TableReader(path)

    found = {e.id: (e.name, list(e.aliases), e.description) for e in reader.entities()}

    rows = pq.read_table(path).to_pylist()
    assert found == {row["id"]: (row["name"], row["aliases"], row["description"]) for row in rows}
    assert reader.count() == len(rows)


def test_integer_ids_become_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [7, None], "name": ["seven", "none"]}), tmp_path / "x.parquet")

    assert list(TableReader(tmp_path / "x.parquet").entities()) == [Entity("7", "seven"), Entity("", "none")]


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("x.jsonl", b'{"id": "Q9", "name": "x"', "no JSON"),
        ("x.jsonl", b'["Q9", "x"]', "no JSON object"),
        ("x.jsonl", b'{"id": true, "name": "x"}', "a value of the wrong type"),
        ("x.jsonl", b'{"id": "Q9", "name": ["x"]}', "a value of the wrong type"),
        ("x.jsonl", b'{"id": "Q9", "name": "x", "aliases": {"y": 1}}', "a value of the wrong type"),
        ("x.jsonl", b'{"id": "Q9", "name": "x", "popularity": "high"}', "a value of the wrong type"),
        (
            "x.jsonl",
            b'{"id": "Q9", "name": "x", "popularity": 1' + b"0" * 400 + b"}",
            "a value of the wrong type",
        ),
        ("x.jsonl", b'{"id": "Q9", "name": "\xff"}', "not UTF-8"),
        ("x.jsonl", b"[" * 100_000, "nested too deeply"),
        ("x.jsonl", b'{"id": "' + b"Q" * 2_000_000 + b'"}', "line longer than 1,048,576 bytes"),
        ("x.csv", b"Q9", "another number of values than of columns"),
        ("x.csv", b"Q9,x,high", "a value of the wrong type"),
        ("x.csv", b"Q9," + b"x" * 200_000 + b",1", "no row of a table"),
        ("x.csv", b"Q9," + b"x" * 2_000_000 + b",1", "line longer than 1,048,576 bytes"),
    ],
)
def test_a_bad_row_is_reported_by_its_line_and_left_out(
    name: str, line: bytes, fault: str, tmp_path: Path
) -> None:
    first, last = (
        (b'{"id": "Q1", "name": "a"}', b'{"id": "Q2", "name": "b"}')
        if name == "x.jsonl"
        else (b"id,name,popularity\nQ1,a,1", b"Q2,b,")
    )
    (tmp_path / name).write_bytes(b"\n".join((first, line, last)))
    reader = TableReader(tmp_path / name)

    assert [entity.id for entity in reader.entities()] == ["Q1", "Q2"]
    assert reader.faults.counts == {fault: 1}
    number = 2 if name == "x.jsonl" else 3
    assert reader.faults.examples[0].startswith(f"line {number}: {fault}")


def test_a_quote_that_is_not_closed_is_a_fault_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,name\nQ1,a\nQ2,"b\nQ3,c\nQ4,"d"\nQ5,e\nQ6,"f\nQ7,g\n')
    reader = TableReader(tmp_path / "x.csv")

    assert [entity.id for entity in reader.entities()] == ["Q1", "Q5"]
    assert reader.faults.counts == {"no row of a table": 2}
    first, second = reader.faults.examples
    assert first.startswith("line 3: ") and "left out to line 5" in first
    assert second.startswith("line 7: ") and "left out to line 8" in second


def test_a_byte_order_mark_keeps_the_first_line_of_a_jsonl(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('\ufeff{"id": "Q1", "name": "a"}\n', encoding="utf-8")
    reader = TableReader(tmp_path / "x.jsonl")

    assert list(reader.entities()) == [Entity("Q1", "a")]
    assert not reader.faults.counts


def test_text_that_is_not_utf8_keeps_its_row_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("id,name\nQ1,Kürbis\nQ2,b\n".encode("latin-1"))
    reader = TableReader(tmp_path / "x.csv")

    assert [entity.name for entity in reader.entities()] == ["K\ufffdrbis", "b"]
    assert reader.faults.examples == ["line 2: not UTF-8, with \ufffd in its place"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "has none of the endings .jsonl, .csv, .tsv, .parquet"),
        ("gz", b"", "has none of the endings"),
        ("x.parquet.gz", b"", "has none of the endings"),
        ("x.csv", b"", "is empty"),
        ("x.csv", b"id;name\n", "has no column 'id' or 'name' .its first line is 'id;name'"),
        ("x.csv.gz", b"id,name\n", "is no gz file"),
        ("x.parquet", b"id,name\n", "is no parquet file, or damaged"),
        ("x.parquet", {"id": ["Q1"]}, "has no column 'name'"),
        (
            "x.parquet",
            {"id": ["Q1"], "name": ["x"], "aliases": ["y"]},
            "column 'aliases' .* is string, not lists",
        ),
    ],
)
def test_files_that_are_no_tables_are_explained(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(pa.table(content), tmp_path / name)
    with pytest.raises(InputError, match=message):
        list(TableReader(tmp_path / name).entities())
