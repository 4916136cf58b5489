from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mofi_lightning.curation.knowledge_bases import command
from mofi_lightning.curation.knowledge_bases.base import KnowledgeBaseReader
from mofi_lightning.curation.knowledge_bases.knowledge_base import KnowledgeBase, build_knowledge_base
from mofi_lightning.curation.knowledge_bases.names import normalise
from mofi_lightning.curation.knowledge_bases.tables import TableReader
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

ENTITIES = [
    Entity("Q1", "Jordan", ("Hashemite Kingdom of Jordan",), "country in West Asia", 300.0, ("Q6256",)),
    Entity("Q2", "Michael Jordan", ("Jordan", "Air Jordan"), "basketball player", 120.0),
    Entity("Q3", "Jordan [river]", ("Jordan",), "", 90.0),
    Entity("Q4", "Jordan", (), "brand"),
    Entity("Q5", "Petra", (), "city in Jordan", 60.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_knowledge_base(ENTITIES, tmp_path / "kb").folder


class _Reader(KnowledgeBaseReader):
    def entities(self) -> Iterator[Entity]:
        yield from ENTITIES
        self.faults.add("no JSON", "line 7", "Expecting value")
        yield Entity("Q6", "")


def test_build_tells_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.build(_Reader(), tmp_path / "kb")

    said = capsys.readouterr().out
    assert list(KnowledgeBase(tmp_path / "kb")) == ENTITIES
    assert "kb: 5 entities, 6 names" in said
    assert "1  no JSON\n" in said
    assert "line 7: no JSON (Expecting value)\n" in said
    assert "entity Q6: no name\n" in said


def test_build_does_not_touch_what_exists(folder: Path) -> None:
    with pytest.raises(InputError, match="exists already; remove it or choose another output"):
        command.build(_Reader(), folder)


def test_a_table_becomes_a_knowledge_base(tmp_path: Path, emoji_slice: Path) -> None:
    reader = TableReader(emoji_slice / "knowledge_base.parquet")
    command.build(reader, tmp_path / "kb")

    assert len(KnowledgeBase(tmp_path / "kb")) == reader.count()


def test_stats_are_those_of_a_count_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.stats(folder)

    figures, _, tops = capsys.readouterr().out.partition("names of most meanings")
    most, _, longest = tops.partition("longest names")
    lines = dict(line.strip().rsplit(maxsplit=1) for line in figures.splitlines()[1:] if line.strip())
    lines = {key.strip(): value for key, value in lines.items()}
    meanings = Counter(name for e in ENTITIES for name in {normalise(n) for n in (e.name, *e.aliases)})
    assert lines["entities"] == "5"
    assert lines["with a description"] == "80.0%"
    assert lines["with a popularity"] == "80.0%"
    assert lines["with types"] == "20.0%"
    assert lines["names, normalised"] == str(len(meanings))
    assert lines["of more than one entity"] == "1"
    assert lines["entities a name, on average"] == f"{meanings.total() / len(meanings):.2f}"
    assert lines["entities a name, at most"] == "4"
    assert most.split()[1:3] == ["jordan", "4"]
    assert longest.split()[1:6] == ["hashemite", "kingdom", "of", "jordan", "4"]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert lines["bytes on disk"] == f"{size:,}"


def test_stats_show_the_five_names_of_most_meanings_whatever_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entities = [Entity(f"Q{n}", "abc"[n % 3], tuple(f"m{m}x" for m in range(n + 1))) for n in range(8)]
    command.stats(build_knowledge_base(entities, tmp_path / "kb").folder)

    said = capsys.readouterr().out
    part = said[said.index("names of most meanings") : said.index("longest names")].splitlines()[1:]
    # name m is an alias of the entities from m on, a name a letter of every third entity
    assert [line.split() for line in part if line.strip()] == [[f"m{m}x", str(8 - m)] for m in range(5)]


def test_lookup_shows_the_candidates_of_each_name_most_popular_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.lookup(folder, "Petra in Jordan", most=3)

    said = capsys.readouterr().out.splitlines()
    assert said[0] == "petra:"
    assert [line.split()[0] for line in said if line.startswith("Q")] == ["Q5", "Q1", "Q2", "Q3"]
    assert "jordan, the first 3 of 4 entities:" in said
    assert any("Jordan [river]" in line for line in said)  # no markup


def test_lookup_says_when_there_is_no_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.lookup(folder, "nothing\x1b[1m here")

    assert capsys.readouterr().out == f"no name of {folder} stands in 'nothing\ufffd[1m here'\n"


def test_lookup_tells_of_names_that_are_no_mentions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_knowledge_base([Entity("Q1", "The")], tmp_path / "kb").folder
    command.lookup(folder, "the")

    assert (
        "but the, which names something and is no mention by itself: a stop word" in capsys.readouterr().out
    )


def test_bad_input_is_explained(tmp_path: Path) -> None:
    for verb in (command.stats, lambda path: command.lookup(path, "x")):
        with pytest.raises(InputError, match=r"no knowledge base in .*; `mofi kb build` makes one"):
            verb(tmp_path)
    with pytest.raises(InputError, match="most 0 is out of range"):
        command.lookup(tmp_path, "x", most=0)
