from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mofi_lightning.curation.stages.base import Stage, atomic, fingerprint, flat, once_a_process
from mofi_lightning.types import InputError

SCHEMA = pa.schema([("row", pa.int32()), ("names", pa.list_(pa.string()))])


def test_a_stage_keeps_its_parts_until_it_is_made_from_other_things(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", "one")
    stage.prepare()
    stage.write(3, {"row": np.array([1, 2]), "names": [["a", "b"], []]}, SCHEMA)
    assert stage.has(3) and not stage.has(2)
    stage.prepare()
    assert stage.read(3, "names")["names"].to_pylist() == [["a", "b"], []]

    Stage(tmp_path / "stage", "two").prepare()
    assert not stage.has(3)
    with pytest.raises(InputError, match=r"000003\.parquet cannot be read .*; remove it, run again"):
        stage.read(3, "row")


def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", "one")
    stage.prepare()
    with pytest.raises(pa.ArrowInvalid):
        stage.write(0, {"row": ["no number"], "names": [[]]}, SCHEMA)
    assert [file.name for file in stage.folder.iterdir()] == ["stage.json"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic(tmp_path / "a.npy") as file:
            np.save(file, np.arange(3))
            assert not (tmp_path / "a.npy").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with atomic(tmp_path / "a.npy") as file:
        np.save(file, np.arange(3))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


def test_lists_lie_flat_with_their_rows() -> None:
    values, rows = flat(pa.chunked_array([[[1.5], None, []], [[2.0, 3.0]]], pa.list_(pa.float32())))
    assert values.tolist() == [1.5, 2.0, 3.0] and rows.tolist() == [0, 3, 3]


@dataclass(frozen=True)
class Settings:
    size: int = 1


class Plugin:
    def __init__(self, size: int) -> None:
        self.size = size


def test_a_fingerprint_names_settings_and_files_but_no_places_in_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    same = fingerprint(1, "x", (Settings(), Plugin(2)), tmp_path / "a")
    assert fingerprint(1, "x", (Settings(), Plugin(2)), tmp_path / "a") == same
    assert fingerprint(1, "x", (Settings(2), Plugin(2)), tmp_path / "a") != same
    assert fingerprint(1, "x", (Settings(), Plugin(3)), tmp_path / "a") != same
    (tmp_path / "a").write_text("22")
    assert fingerprint(1, "x", (Settings(), Plugin(2)), tmp_path / "a") != same
    assert fingerprint(["a", "b"]) != fingerprint(["ab"])


@dataclass(frozen=True)
class Names:
    names: Path


def test_a_fingerprint_follows_the_files_that_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("a")
    settings = [(Names(file),), (Plugin(Names(file)),), (Plugin(str(file)),)]  # type: ignore[arg-type]
    before = [fingerprint(one) for one in settings]
    assert before == [fingerprint(one) for one in settings]
    file.write_text("other names")
    assert all(fingerprint(one) != old for one, old in zip(settings, before, strict=True))


def test_a_kill_while_an_old_stage_is_removed_leaves_none_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Stage(tmp_path / "stage", name) for name in ("one", "two"))
    first.prepare()
    first.write(0, {"row": [1], "names": [[]]}, SCHEMA)
    first.write(1, {"row": [1], "names": [[]]}, SCHEMA)

    def dies(folder: Path, **options: object) -> None:
        first.file(0).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("mofi_lightning.curation.stages.base.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        second.prepare()
    monkeypatch.undo()
    first.prepare()
    assert not first.has(1)


def test_a_process_keeps_one_thing_of_a_kind() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for name in ("a", "a", "b", "b", "a"):
        assert once_a_process(f"kind/{name}", lambda name=name: make(name)) == name
        once_a_process("other/x", lambda: "x")
    assert made == ["a", "b", "a"]
