import sys
import time
import tracemalloc
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

from mofi_lightning.curation.knowledge_bases import alias_index
from mofi_lightning.curation.knowledge_bases.alias_index import LONGEST_NAME, AliasIndex, AliasIndexBuilder
from mofi_lightning.types import InputError

Meaning = tuple[str, int, bool]


def write(folder: Path, meanings: list[Meaning], part: int = 1 << 22) -> AliasIndex:
    builder = AliasIndexBuilder(folder, part)
    for meaning in meanings:
        builder.add(*meaning)
    builder.write()
    return AliasIndex(folder)


def random_meanings(random: Random, count: int) -> list[Meaning]:
    """Few words, so that names repeat, share prefixes and mean several entities."""
    vocabulary = ["a", "ab", "b", "abc", "c", "\u6771", "\u03c9"]
    return [
        (
            " ".join(random.choices(vocabulary, k=random.randint(1, 4))),
            random.randint(0, 40),
            random.random() < 0.3,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("part", [1, 100, 1 << 22])
def test_candidates_are_those_of_a_dictionary(
    tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias_index, "_BUFFER", 64)  # so that buckets are written in several turns
    meanings = random_meanings(Random(1), 1_000)
    expected: dict[str, dict[int, bool]] = defaultdict(dict)
    for name, row, named in meanings:
        expected[name][row] = expected[name].get(row, False) or named

    index = write(tmp_path / "index", meanings, part)

    assert len(index) == len(expected) and set(index) == set(expected)
    assert sorted(map(index.number, expected)) == list(range(len(expected)))
    for name, entities in expected.items():
        rows, named = index.candidates(index.number(name))
        assert rows.tolist() == sorted(entities)
        assert dict(zip(rows.tolist(), named.tolist(), strict=True)) == entities
    assert index.number("a b c abc ab") == index.number("") == index.number("ab ") == -1


def longest_names(names: set[str], text: list[str]) -> list[str]:
    """Tries every stretch of words, the longest first, from left to right."""
    found, start = [], 0
    while start < len(text):
        stops = (stop for stop in range(len(text), start, -1) if " ".join(text[start:stop]) in names)
        stop = next(stops, 0)
        if stop:
            found.append(" ".join(text[start:stop]))
        start = stop or start + 1
    return found


@pytest.mark.parametrize("part", [1, 1 << 22])
def test_names_found_are_those_of_a_brute_force_search(tmp_path: Path, part: int) -> None:
    random = Random(2)
    for trial in range(10):
        meanings = random_meanings(random, 12)
        index = write(tmp_path / str(trial), meanings, part)
        for _ in range(50):
            text = random.choices(
                ["a", "ab", "abc", "b", "c", "\u6771", "\u03c9", "x"], k=random.randint(0, 12)
            )
            assert index.find(text) == longest_names({name for name, *_ in meanings}, text)


def test_many_names_lie_in_several_parts(tmp_path: Path) -> None:
    index = write(tmp_path / "index", [(f"w{n} x", n, True) for n in range(1_000)], part=100)

    assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) > 5
    assert index.find(["w7", "x", "w999", "x", "w1000", "x"]) == ["w7 x", "w999 x"]


def test_the_same_names_make_the_same_bytes_and_nothing_else_stays(tmp_path: Path) -> None:
    meanings = random_meanings(Random(3), 500)
    for name in ("first", "second"):
        write(tmp_path / name, meanings, part=100)

    files = {p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*") if p.is_file()}
    assert {path.name for path in files} == {
        "index.json",
        "names.trie",
        "offsets.npy",
        "rows.npy",
        "named.npy",
    }
    for path in files:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()


def test_names_too_long_for_a_caption_are_left_out(tmp_path: Path) -> None:
    longest = "x" * LONGEST_NAME
    index = write(tmp_path / "index", [(longest, 1, True), (f"{longest}x", 2, True), ("", 3, True)])

    assert list(index) == [longest]
    assert index.find([longest, "a"]) == [longest]


def test_an_index_without_names_finds_nothing(tmp_path: Path) -> None:
    index = write(tmp_path / "index", [])

    assert len(index) == 0 and list(index) == index.find(["cat"]) == []
    assert index.number("cat") == -1


def test_building_takes_memory_for_a_part_not_for_all_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias_index, "_BUFFER", 8_000)
    alias_index.new_trie()  # what the import takes does not count
    tracemalloc.start()
    builder = AliasIndexBuilder(tmp_path / "index", part=5_000)
    for number in range(40_000):
        builder.add(f"w{number} of the tower", number, True)
    builder.write()
    _, peak = tracemalloc.get_traced_memory()
    # the interpreter's table of interned strings, 7 MB, may happen to grow when a path is made
    paths = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*pathlib.py")])
    peak -= sum(trace.size for trace in paths.traces)
    tracemalloc.stop()

    assert peak < 2e6  # the strings of all names alone are 2.8 MB, their meanings and lists as much
    assert len(AliasIndex(tmp_path / "index")) == 40_000


def test_rows_as_large_as_an_index_may_have_are_kept(tmp_path: Path) -> None:
    last = 2**31 - 1
    index = write(tmp_path / "index", [("cat", last, False), ("cat", 0, True)])

    rows, named = index.candidates(index.number("cat"))
    assert rows.tolist() == [0, last] and named.tolist() == [True, False]


@pytest.mark.parametrize("names", [["a b c d e f g h"], ["a a a a a a a a b"]])
def test_texts_that_nearly_match_are_searched_in_linear_time(tmp_path: Path, names: list[str]) -> None:
    index = write(tmp_path / "index", [(name, 0, True) for name in names])
    start = time.perf_counter()
    assert index.find(["a"] * 200_000) == []
    assert time.perf_counter() - start < 5


def test_a_missing_trie_package_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "marisa_trie", None)
    with pytest.raises(InputError, match=r"mofi-lightning\[curation\]"):
        write(tmp_path / "index", [("cat", 0, True)])
