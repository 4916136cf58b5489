import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mofi_lightning.curation.knowledge_bases.base import Faults
from mofi_lightning.curation.knowledge_bases.knowledge_base import (
    FILE_NAME,
    KnowledgeBase,
    build_knowledge_base,
)
from mofi_lightning.curation.knowledge_bases.names import normalise, words
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

ENTITIES = [
    Entity("Q3", "Dog face", ("dog", "pets", "Puppy"), "an animal's face", 3.5, ("Q144",)),
    Entity("Q1", "Dog", ("pet", "dogs"), "animal", 20.0),
    Entity("Q20", "M\u00fcnchen", (), "", 7.0, ("Q515", "Q6256")),
]


def _random_entities(count: int, seed: int = 0) -> list[Entity]:
    """Entities that share names and words, with ids in no order."""
    draw = random.Random(seed)
    vocabulary = [f"w{number}o" for number in range(count // 2 + 5)]

    def text(longest: int) -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(1, longest)))

    ids = [f"Q{number}" for number in range(count)]
    draw.shuffle(ids)
    return [
        Entity(
            id,
            text(2),
            tuple(dict.fromkeys(text(3) for _ in range(draw.randrange(4)))),
            text(8),
            float(draw.randrange(9)),
        )
        for id in ids
    ]


def test_a_knowledge_base_gives_back_what_it_was_built_of(tmp_path: Path) -> None:
    base = build_knowledge_base(ENTITIES, tmp_path / "kb")

    assert list(base) == ENTITIES
    assert base.ids([2, 0, 0]) == ["Q20", "Q3", "Q3"]
    assert base.names(np.array([1])) == ["Dog"]
    assert base.descriptions([]) == []
    assert base.types([2, 1]) == [["Q515", "Q6256"], []]
    assert base.popularity([1, 2]).tolist() == [20.0, 7.0]
    assert base.rows_of(["Q1", "nothing", "Q3", "", "\ud800"]).tolist() == [1, -1, 0, -1, -1]
    assert base.row("Q20") == 2
    with pytest.raises(IndexError, match="row 3 is not among the 3"):
        base[3]


@pytest.mark.parametrize("small", [True, False])
def test_names_words_and_ids_are_those_of_a_scan_over_all_entities(
    small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # several batches, spills and buckets for a few entities
        monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.entity_table._BATCH_ROWS", 7)
        monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.word_bags._WAITING", 11)
        monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.external_sort._WAITING", 13)
        monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.knowledge_base._WAITING", 5)
    entities = _random_entities(200)
    base = build_knowledge_base(entities, tmp_path / "kb")

    assert list(base) == entities
    assert base.popularity(range(200)).tolist() == [entity.popularity for entity in entities]
    assert base.rows_of([entity.id for entity in entities]).tolist() == list(range(200))
    for count in (10, 150):  # one by one, and batch by batch
        order = random.Random(1).choices(range(200), k=count)
        assert base.ids(order) == [entities[row].id for row in order]

    names = [[normalise(name) for name in (entity.name, *entity.aliases)] for entity in entities]
    assert set(base.aliases) == {name for of_entity in names for name in of_entity}
    for name in base.aliases:
        rows, named = base.aliases.candidates(base.aliases.number(name))
        assert rows.tolist() == [row for row, of_entity in enumerate(names) if name in of_entity]
        assert named.tolist() == [names[row][0] == name for row in rows]

    bags = [
        {*words(entity.description), *(word for name in of_entity for word in name.split())}
        for entity, of_entity in zip(entities, names, strict=True)
    ]
    everything = sorted(set().union(*bags))
    numbers = dict(zip(everything, base.word_numbers(everything), strict=True))
    assert sorted(numbers.values()) == list(range(base.word_count))
    assert base.word_numbers(["absent", everything[0]]) == [-1, numbers[everything[0]]]
    for row, bag in enumerate(bags):
        assert base.bag(row).tolist() == sorted(numbers[word] for word in bag)


def test_a_knowledge_base_is_pickled_as_its_path(tmp_path: Path) -> None:
    base = build_knowledge_base(_random_entities(50), tmp_path / "kb")

    pickled = pickle.dumps(base)

    assert len(pickled) < 500
    assert list(pickle.loads(pickled)) == list(base)


def test_equal_entities_make_equal_files_and_other_entities_another_fingerprint(tmp_path: Path) -> None:
    entities = _random_entities(60)
    one, two = (build_knowledge_base(iter(entities), tmp_path / name) for name in ("one", "two"))
    other = build_knowledge_base([*entities[:-1], entities[-1]._replace(popularity=99.0)], tmp_path / "other")

    assert _contents(one.folder) == _contents(two.folder)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_what_is_not_admitted_is_counted_and_named(tmp_path: Path) -> None:
    faults = Faults()
    entities = [
        Entity("Q1", "first"),
        Entity("", "no id"),
        Entity("Q2", " \t"),
        Entity("Q1", "second"),
        Entity("Q3", "!!!", ("?", "x" * 251)),
        Entity("Q4", "x" * 251),
        Entity("Q\x1b[2J5", "control characters"),
        Entity("Q" * 1_000_000, "long id"),
        Entity("Q1", "third"),
        Entity("Q6", "two\nlines \ud800", ("zero\u200dwidth",), "d" * 6000, float("nan"), ("Q7", "", "\x00")),
    ]

    base = build_knowledge_base(entities, tmp_path / "kb", faults)

    assert base.ids(range(len(base))) == ["Q1", "Q3", "Q6"]
    assert base[0].name == "first"
    assert base[2] == Entity("Q6", "two lines \ufffd", ("zero\u200dwidth",), "d" * 5000, 0.0, ("Q7",))
    assert faults.counts == {
        "no id": 1,
        "no name": 1,
        "id occurs twice": 2,
        "name of which normalising leaves nothing": 2,
        "alias longer than 250 characters": 1,
        "name longer than 250 characters": 1,
        "id with unprintable characters": 1,
        "id longer than 250 characters": 1,
        "description cut after 5,000 characters": 1,
        "popularity is negative, above 3.4e38 or no number": 1,
    }
    assert "entity Q1: id occurs twice" in faults.examples
    assert all(len(example) < 300 and example.isprintable() for example in faults.examples)
    assert KnowledgeBase(tmp_path / "kb").skipped == faults.counts


def test_a_popularity_that_float32_cannot_hold_counts_as_none(tmp_path: Path) -> None:
    most = float(np.finfo(np.float32).max)
    base = build_knowledge_base(
        [Entity("Q1", "a", popularity=1e39), Entity("Q2", "b", popularity=most)], tmp_path / "kb"
    )

    assert base.popularity([0, 1]).tolist() == [0.0, most]


def test_of_equal_ids_the_first_stays_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.entity_table._BATCH_ROWS", 16)
    monkeypatch.setattr("mofi_lightning.curation.knowledge_bases.external_sort._WAITING", 40)
    draw = random.Random(3)
    entities = [Entity(f"Q{draw.randrange(60)}", f"name {number}") for number in range(150)]
    first: dict[str, Entity] = {}
    for entity in entities:
        first.setdefault(entity.id, entity)
    faults = Faults()

    base = build_knowledge_base(entities, tmp_path / "kb", faults)

    assert list(base) == list(first.values())
    assert base.rows_of(list(first)).tolist() == list(range(len(first)))
    assert faults.counts == Counter({"id occurs twice": 150 - len(first)})
    rows, _ = base.aliases.candidates(base.aliases.number(normalise(base[7].name)))
    assert rows.tolist() == [7]


def test_cyclic_aliases_are_two_meanings_of_both_names(tmp_path: Path) -> None:
    base = build_knowledge_base(
        [Entity("Q1", "tic", ("tac",)), Entity("Q2", "tac", ("tic",))], tmp_path / "kb"
    )

    for name, named in (("tic", [True, False]), ("tac", [False, True])):
        rows, is_named = base.aliases.candidates(base.aliases.number(name))
        assert (rows.tolist(), is_named.tolist()) == ([0, 1], named)


@pytest.mark.parametrize("entities", [[], [Entity("Q1", ""), Entity("Q2", " ")], [Entity("", "x")]])
def test_no_usable_entity_is_an_error_and_leaves_nothing(entities: list[Entity], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no entity with an id and a name for the knowledge base"):
        build_knowledge_base(entities, tmp_path / "kb")
    assert list(tmp_path.iterdir()) == []


def test_entities_without_any_usable_name_make_an_index_without_names(tmp_path: Path) -> None:
    base = build_knowledge_base([Entity("Q1", "!!!")], tmp_path / "kb")

    assert (len(base), len(base.aliases), base.word_count) == (1, 0, 0)
    assert base.word_numbers(["x"]) == [-1]
    assert base.bag(0).tolist() == []


def test_a_build_that_fails_leaves_the_old_knowledge_base(tmp_path: Path) -> None:
    def entities() -> Iterator[Entity]:
        yield Entity("Q9", "new")
        raise KeyboardInterrupt

    build_knowledge_base(ENTITIES, tmp_path / "kb")
    with pytest.raises(KeyboardInterrupt):
        build_knowledge_base(entities(), tmp_path / "kb")

    assert list(KnowledgeBase(tmp_path / "kb")) == ENTITIES
    assert [path.name for path in tmp_path.iterdir()] == ["kb"]
    build_knowledge_base([Entity("Q9", "new")], tmp_path / "kb")
    assert KnowledgeBase(tmp_path / "kb").ids([0]) == ["Q9"]


def test_a_killed_build_shows_nothing_and_the_next_one_is_as_if_there_had_been_none(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from mofi_lightning.sources.base import Entity\n"
        "from mofi_lightning.curation.knowledge_bases import entity_table, knowledge_base\n"
        "entity_table._BATCH_ROWS = 10\n"
        "def entities():\n"
        "    yield from (Entity(f'Q{n}', f'name {n}') for n in range(100))\n"
        "    print('written', flush=True); time.sleep(60)\n"
        "knowledge_base.build_knowledge_base(entities(), Path(sys.argv[1]))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "kb")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        with pytest.raises(InputError, match=r"another process is writing .*; wait for it"):
            build_knowledge_base(ENTITIES, tmp_path / "kb")
        process.kill()

    assert (tmp_path / ".kb.partial" / "entities.arrow").exists()
    assert not (tmp_path / "kb").exists()
    again, fresh = (build_knowledge_base(ENTITIES, tmp_path / name) for name in ("kb", "fresh"))
    assert _contents(again.folder) == _contents(fresh.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "kb"]


@pytest.mark.parametrize("step", ["os.replace", "shutil.rmtree"])
def test_a_build_killed_while_it_replaces_the_old_one_does_not_stop_the_next(
    step: str, tmp_path: Path
) -> None:
    build_knowledge_base(ENTITIES, tmp_path / "kb")
    # killed half way through removing a knowledge base, or between two renames
    script = (
        "import os, shutil, sys; from pathlib import Path; from mofi_lightning.sources.base import Entity\n"
        "from mofi_lightning.curation.knowledge_bases.knowledge_base import FILE_NAME, build_knowledge_base\n"
        "rename, kill = os.replace, lambda: os.kill(os.getpid(), 9)\n"
        "def replace(source, target):\n"
        "    if Path(target).name == 'kb': kill()\n"
        "    rename(source, target)\n"
        "def rmtree(place, ignore_errors=False):\n"
        "    if (Path(place) / FILE_NAME).exists(): (Path(place) / FILE_NAME).unlink(); kill()\n"
        "if sys.argv[2] == 'os.replace': os.replace = replace\n"
        "else: shutil.rmtree = rmtree\n"
        "build_knowledge_base([Entity('Q9', 'new')], Path(sys.argv[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "kb"), step]).returncode == -9

    with pytest.raises(InputError, match="no entity"):  # nor is the old one lost
        build_knowledge_base([], tmp_path / "kb")
    assert len(KnowledgeBase(tmp_path / "kb")) == (3 if step == "os.replace" else 1)
    build_knowledge_base([Entity("Q8", "next")], tmp_path / "kb")
    assert KnowledgeBase(tmp_path / "kb").ids([0]) == ["Q8"]
    assert [path.name for path in tmp_path.iterdir()] == ["kb"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")

    with pytest.raises(InputError, match="exists already"):
        build_knowledge_base(ENTITIES, tmp_path)
    assert (tmp_path / "photo.jpg").exists()


def test_damaged_and_foreign_folders_are_explained(tmp_path: Path) -> None:
    base = build_knowledge_base(ENTITIES, tmp_path / "kb")
    for file in sorted(base.folder.rglob("*")):
        if file.is_file() and file.name != FILE_NAME:
            content = file.read_bytes()
            other = [b"[]", b"{}", b"0"] if file.suffix == ".json" else []
            for damaged in (b"", content[:5], content[:-9], *other):
                file.write_bytes(damaged)
                with pytest.raises(InputError, match=r"is damaged .*; build it anew"):
                    KnowledgeBase(base.folder)
            file.write_bytes(content)
    about = json.loads((base.folder / FILE_NAME).read_text())
    (base.folder / FILE_NAME).write_text(json.dumps({**about, "schema": 99}))
    with pytest.raises(InputError, match="has schema 99, not 1; build it anew"):
        KnowledgeBase(base.folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
