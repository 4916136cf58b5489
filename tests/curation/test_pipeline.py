import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser

from mofi_lightning.curation.finish import publish
from mofi_lightning.curation.labels.filters import ImageSize, NearDuplicates, TextLength
from mofi_lightning.curation.pipeline import curate
from mofi_lightning.curation.texts.linking import Linking
from mofi_lightning.data.schema import Row
from mofi_lightning.data.shards import ShardReader, open_dataset
from mofi_lightning.types import InputError

CONFIGS = Path(__file__).parents[2] / "configs" / "curation"
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
TEXTS = ["{0} dot", "{0} dot", "{0} square", "a {0} square"]


@pytest.fixture
def pairs(tmp_path: Path, drawings: Sequence[bytes]) -> Path:
    """Four pairs a colour; text 0 is wrong, one names nothing, one image is broken, one is null."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows, truth = [], []
    for c, colour in enumerate(COLOURS):
        for n, text in enumerate(TEXTS):
            kind = "dot" if n < 2 else "square"
            rows.append(
                {"key": f"{colour}/{n}", "image": drawings[2 * c + n // 2], "text": text.format(colour)}
            )
            truth.append({"key": f"{colour}/{n}", "split": "train", "entity": f"Q-{colour}-{kind}"})
    rows[0]["text"] = "blue dot"
    rows[4]["text"] = "IMG_0001.png"
    rows[5]["image"] = b"no image"
    rows[6]["image"] = None
    entities = [
        {"id": f"Q-{colour}-{kind}", "name": f"{colour} {kind}", "aliases": [kind], "description": "a shape"}
        for kind in ("square", "dot")
        for colour in COLOURS
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=5)
    pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet")
    pq.write_table(pa.Table.from_pylist(entities), folder / "knowledge_base.parquet")
    return folder / "train.parquet"


def run(pairs: Path, output: Path, **options: Any) -> None:
    """`curate` in this process."""
    curate(pairs, output, **{"num_workers": 0, **options})


def rows_of(output: Path) -> list[Row]:
    reader = ShardReader(open_dataset(output))
    return [reader[index] for index in range(len(reader))]


def steps_of(output: Path) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in json.loads((output / "curation.json").read_text())["steps"]}


def times(output: Path, stage: str) -> dict[str, int]:
    return {
        file.name: file.stat().st_mtime_ns for file in (output / "stages" / stage).iterdir() if file.is_file()
    }


def labels_of(output: Path) -> list[tuple[str, str, float]]:
    tables = [pq.read_table(file) for file in sorted((output / "stages" / "labels").glob("*.parquet"))]
    columns = (pa.concat_tables(tables)[name].to_pylist() for name in ("key", "entity", "score"))
    return list(zip(*columns, strict=True))


def test_texts_alone_make_a_data_set_with_vocabulary_and_counts(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(pairs, output, min_images=2, part_rows=5)

    vocabulary = open_dataset(output).vocabulary
    assert vocabulary is not None
    # green dot: one text names nothing, one image is broken; green square and red dot keep one image each
    expected = sorted(
        f"Q-{colour}-{kind}"
        for colour in COLOURS
        for kind in ("dot", "square")
        if (colour, kind) not in {("green", "dot"), ("green", "square"), ("red", "dot")}
    )
    assert list(vocabulary.ids) == expected
    counts = dict(zip(vocabulary.ids, vocabulary.counts, strict=True))
    assert counts == {entity: 3 if entity == "Q-blue-dot" else 2 for entity in expected}

    rows = rows_of(output)
    assert len(rows) == 19  # 22 can be read; one text names nothing, two entities have too few images
    found = {row.key: [vocabulary.ids[entity] for entity in row.entities] for row in rows}
    assert found["red/0"] == ["Q-blue-dot"]
    assert found["red/2"] == ["Q-red-square"]
    assert not {"green/0", "red/1"} & set(found)
    assert all(len(row.scores) == len(row.entities) > 0 for row in rows)
    assert [row.key for row in rows] == sorted(found, key=list(pq.read_table(pairs)["key"].to_pylist()).index)

    report = json.loads((output / "curation.json").read_text())
    assert sum(report["undecodable_images"].values()) == 2
    # before the last step 21 labels of 22 images, red/0's is wrong; 23 texts name what they show less red/0's
    best = steps_of(output)["best by score"]
    assert (best["rows"], best["labels"], best["coverage"]) == (22, 21, pytest.approx(21 / 24))
    assert (best["precision"], best["recall"]) == (pytest.approx(20 / 21), pytest.approx(20 / 23))
    page = (output / "report.html").read_text()
    assert "red square" in page and "data:image/" in page


def test_neither_the_parts_nor_the_processes_change_the_data_set(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "one", min_images=2)
    run(pairs, tmp_path / "parts", min_images=2, part_rows=1)
    run(pairs, tmp_path / "processes", min_images=2, part_rows=1, num_workers=2)

    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "one")
    assert len(list((tmp_path / "parts" / "stages" / "labels").glob("*.parquet"))) == 5
    for name in ("vocabulary.arrow", "curation.json"):
        expected = (tmp_path / "parts" / name).read_bytes()
        assert (tmp_path / "processes" / name).read_bytes() == expected
    assert (tmp_path / "one" / "vocabulary.arrow").read_bytes() == (
        tmp_path / "parts" / "vocabulary.arrow"
    ).read_bytes()


def test_a_scorer_chooses_and_filters(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    output = tmp_path / "out"
    run(pairs, output, scorer=str(scorer), keep=0.5, min_images=1, templates=["{name}"])

    steps = steps_of(output)
    names = ["mentions", "candidates", "best by text", "best by score"]
    assert list(steps)[:4] == names and list(steps)[5:] == ["1+ images"]
    over = list(steps)[4]
    assert over.startswith("scores from ")
    half = round(0.5 * steps["best by score"]["labels"])
    assert half <= steps[over]["labels"] <= half + 1  # equal scores, as of copies, stay together
    scores = [score for row in rows_of(output) for score in row.scores]
    threshold = json.loads((output / "curation.json").read_text())["threshold"]
    best = pq.read_table(output / "stages" / "ranked" / "000000.parquet")["score"].to_pylist()
    assert sorted(scores) == sorted(score for score in best if score >= threshold)
    scored = pq.read_table(output / "stages" / "scored" / "000000.parquet").to_pylist()
    linked = pq.read_table(output / "stages" / "linked" / "000000.parquet").to_pylist()
    assert len(scores) == steps["1+ images"]["labels"]
    assert [row["key"] for row, fit in zip(linked, scored, strict=True) if fit["error"]] == [
        "green/1",
        "green/2",
    ]
    for row, fit in zip(linked, scored, strict=True):
        assert fit["error"] or len(fit["cosines"]) == len(row["entities"])


def test_images_keep_several_entities_best_first(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    run(pairs, tmp_path / "out", scorer=str(scorer), top_k=3, min_images=1, agreement=False)

    rows = rows_of(tmp_path / "out")
    assert max(len(row.entities) for row in rows) <= 3
    assert all(list(row.scores) == sorted(row.scores, reverse=True) for row in rows)


def test_other_criteria_reuse_the_stages_and_changed_inputs_do_not(
    pairs: Path, tmp_path: Path, scorer: Path
) -> None:
    output = tmp_path / "out"

    def stages() -> list[dict[str, int]]:
        return [times(output, name) for name in ("linked", "scored")]

    run(pairs, output, scorer=str(scorer), min_images=1)
    first, written = stages(), (output / "dataset.json").stat().st_mtime_ns
    run(pairs, output, scorer=str(scorer), min_images=1)
    assert stages() == first
    assert (output / "dataset.json").stat().st_mtime_ns == written

    run(pairs, output, scorer=str(scorer), min_images=2, keep=0.9)
    assert stages() == first
    assert (output / "dataset.json").stat().st_mtime_ns != written

    run(pairs, output, scorer=str(scorer), min_images=1, templates=["{name}"])
    assert stages()[0] == first[0]
    assert stages()[1] != first[1]

    pq.write_table(pq.read_table(pairs).slice(0, 20), pairs)
    run(pairs, output, scorer=str(scorer), min_images=1)
    assert stages()[0] != first[0]
    assert open_dataset(output).rows == 17  # of 20, two cannot be read and one names nothing


def test_filters_leave_out_and_say_what(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    filters = [ImageSize(min_side=16), TextLength(max_characters=12), NearDuplicates(distance=0)]
    run(pairs, output, min_images=1, filters=filters)

    report = json.loads((output / "curation.json").read_text())
    # "purple square" and the like are too long; of the drawings each comes twice
    long = sum(len(text or "") > 12 for text in pq.read_table(pairs)["text"].to_pylist())
    assert report["removed"]["text length"] == long > 0
    assert report["removed"]["near-duplicates"] > 0
    keys = {row.key for row in rows_of(output)}
    assert "red/0" in keys and "red/1" not in keys  # the same drawing


def test_copies_do_not_vouch_for_each_other(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    """The drawing of a red dot comes twice: neither the first nor its copy counts the other as agreeing."""
    run(pairs, tmp_path / "out", scorer=str(scorer), min_images=1, part_rows=5)
    copies = [
        np.load(file).tolist() for file in sorted((tmp_path / "out" / "stages" / "copies").glob("*.npy"))
    ]
    # of the pairs 0 and 1, 2 and 3 ... of a colour, the second; broken images are none
    expected = [number % 2 == 1 and number not in (5, 7) for number in range(24)]
    assert [copy for part in copies for copy in part] == expected
    files = sorted((tmp_path / "out" / "stages" / "agreed-2").glob("*.parquet"))
    agreed = [fit for file in files for fit in pq.read_table(file)["cosines"].to_pylist()]
    for copy, fits in zip(expected, agreed, strict=True):
        assert not copy or all(np.isnan(fit) for fit in fits)


def test_a_vocabulary_is_extended_without_renumbering(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "first", min_images=3)
    run(pairs, tmp_path / "second", min_images=2, vocabulary=tmp_path / "first")
    first, second = (open_dataset(tmp_path / name).vocabulary for name in ("first", "second"))
    assert first is not None and second is not None

    assert list(first.ids) == ["Q-blue-dot"]
    assert list(second.ids)[:1] == ["Q-blue-dot"]
    assert list(second.ids)[1:] == sorted(second.ids[1:]) and len(second) == 9
    # what the earlier vocabulary has stays, even with too few images now
    run(pairs, tmp_path / "third", min_images=24, vocabulary=tmp_path / "second")
    third = open_dataset(tmp_path / "third").vocabulary
    assert third is not None and list(third.ids) == list(second.ids)


def test_an_entity_keeps_at_most_its_best_images(pairs: Path, tmp_path: Path) -> None:
    run(pairs, tmp_path / "out", min_images=1, max_images=1)
    vocabulary = open_dataset(tmp_path / "out").vocabulary
    assert vocabulary is not None and set(vocabulary.counts) == {1}
    assert list(steps_of(tmp_path / "out"))[-1] == "at most 1 images"


def test_a_run_killed_while_it_moves_the_data_set_is_finished_by_the_next(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run(pairs, output, min_images=1)
    expected = rows_of(output)
    # what is left when it dies between the moves: shards in their place, the rest not yet
    shutil.rmtree(output)
    replaced = os.replace

    def dies(source: Path, target: Path) -> None:
        if Path(target) == output / "vocabulary.arrow":
            raise KeyboardInterrupt
        replaced(source, target)

    monkeypatch.setattr("mofi_lightning.curation.finish.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        run(pairs, output, min_images=1)
    assert not (output / "dataset.json").exists()
    monkeypatch.undo()

    run(pairs, output, min_images=1)

    assert rows_of(output) == expected
    assert not list((output / "stages").glob("*dataset*"))


@pytest.mark.parametrize("moment", ["rmdir", "replace"])
def test_a_kill_at_the_end_of_the_move_loses_nothing(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    for name in ("vocabulary.arrow", "dataset.json"):
        (fresh / name).parent.mkdir(exist_ok=True)
        (fresh / name).write_text("new")
    output.mkdir()
    (output / "dataset.json").write_text("old")
    replaced = os.replace

    def dies(*arguments: Path) -> None:
        if moment == "rmdir" or arguments[0].name == "dataset.json":
            raise KeyboardInterrupt
        replaced(*arguments)

    where = "pathlib.Path.rmdir" if moment == "rmdir" else "mofi_lightning.curation.finish.os.replace"
    monkeypatch.setattr(where, dies)
    with pytest.raises(KeyboardInterrupt):
        publish(fresh, output)
    assert moment == "rmdir" or not (output / "dataset.json").exists()
    monkeypatch.undo()
    publish(fresh, output)
    found = {file.name: file.read_text() for file in output.iterdir()}
    assert found == {"vocabulary.arrow": "new", "dataset.json": "new"} and not fresh.exists()


def test_parts_of_several_chunks_survive_a_kill_while_they_are_joined(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(pairs, tmp_path / "one", min_images=1)
    monkeypatch.setattr("mofi_lightning.data.writing.CHUNK_BYTES", 1)
    output, removed = tmp_path / "out", shutil.rmtree

    def dies(folder: Path, **options: Any) -> None:
        if Path(folder).name == "parts":
            removed(Path(folder) / "000001")
            raise KeyboardInterrupt
        removed(folder, **options)

    monkeypatch.setattr("mofi_lightning.data.writing.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        run(pairs, output, min_images=1, part_rows=5)
    monkeypatch.setattr("mofi_lightning.data.writing.shutil.rmtree", removed)
    run(pairs, output, min_images=1, part_rows=5)
    assert rows_of(output) == rows_of(tmp_path / "one")
    assert len(list((output / "shards").glob("chunk-*.bin"))) == len(rows_of(output))


def test_what_was_half_moved_of_another_choice_is_replaced(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(pairs, output, min_images=1)
    expected = rows_of(output)
    run(pairs, output, min_images=2)
    # a move of the first choice that stopped after the shards
    (output / "dataset.json").unlink()
    (output / "curation.json").unlink()
    run(pairs, output, min_images=1)
    assert rows_of(output) == expected


def test_labels_do_not_depend_on_the_truth(pairs: Path, tmp_path: Path) -> None:
    truth = pairs.parent / "truth.parquet"
    run(pairs, tmp_path / "with", min_images=1)
    rows = pq.read_table(truth).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "entity": "Q-red-dot"} for row in rows]), truth)
    run(pairs, tmp_path / "wrong", min_images=1)
    truth.unlink()
    run(pairs, tmp_path / "without", min_images=1)

    assert rows_of(tmp_path / "with") == rows_of(tmp_path / "wrong") == rows_of(tmp_path / "without")
    assert steps_of(tmp_path / "with")["1+ images"]["precision"] > 0.9
    assert steps_of(tmp_path / "wrong")["1+ images"]["precision"] < 0.1
    assert steps_of(tmp_path / "without")["1+ images"]["precision"] is None


def test_unusable_input_is_explained(pairs: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "out", pairs.parent
    table = pq.read_table(pairs)
    pq.write_table(table.slice(0, 0), folder / "empty.parquet")
    pq.write_table(table.drop_columns(["image", "text"]), folder / "keys.parquet")
    pq.write_table(table.set_column(1, "image", pa.array([b"x"] * len(table))), folder / "broken.parquet")
    (folder / "text.parquet").write_text("no parquet")

    with pytest.raises(InputError, match="nothing at"):
        run(folder / "absent.parquet", output)
    with pytest.raises(InputError, match="has no rows"):
        run(folder / "empty.parquet", output)
    with pytest.raises(InputError, match=r"has no column 'image', 'text' \(it has key\)"):
        run(folder / "keys.parquet", output)
    with pytest.raises(InputError, match="is no parquet file, or damaged"):
        run(folder / "text.parquet", output)
    with pytest.raises(InputError, match="none of the 24 images"):
        run(folder / "broken.parquet", output)
    with pytest.raises(InputError, match="no knowledge base at"):
        run(pairs, output, knowledge_base=tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="no truth file at"):
        run(pairs, output, truth=tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="no scorer at"):
        run(pairs, output, scorer=str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no vocabulary at"):
        run(pairs, output, vocabulary=tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no split 'trian'; it has .*train"):
        run(folder, output, split="trian")
    with pytest.raises(InputError, match="part_rows 0 is out of range"):
        run(pairs, output, part_rows=0)
    with pytest.raises(InputError, match="candidates 0 is out of range"):
        Linking(candidates=0)
    with pytest.raises(InputError, match="is for --engine ray"):
        run(pairs, output, ray_address="auto")
    with pytest.raises(InputError, match="is estimated from images that were scored; give a scorer"):
        run(pairs, output, precision=0.9)
    with pytest.raises(InputError, match=r"no label is left .*21 after 'best by score'"):
        run(pairs, output, min_images=100)


def test_a_run_is_a_scorer_and_only_its_model_counts(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    folder, output = tmp_path / "run", tmp_path / "out"
    shutil.copytree(scorer, folder / "model")
    run(pairs, output, scorer=str(folder), min_images=2)
    scored = times(output, "scored")
    (folder / "logs").mkdir()
    (folder / "logs" / "metrics.csv").write_text("step")
    run(pairs, output, scorer=str(folder), min_images=2)
    run(pairs, output, scorer=str(folder / "model"), min_images=2)
    assert times(output, "scored") == scored


def test_a_key_that_comes_twice_is_named_and_leaves_no_folder(pairs: Path, tmp_path: Path) -> None:
    table = pq.read_table(pairs)
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), pairs)
    with pytest.raises(InputError, match=r"key 'red/3' comes twice in pairs file .*train\.parquet"):
        run(pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_parts_is_read_in_order(pairs: Path, tmp_path: Path) -> None:
    table, folder = pq.read_table(pairs), tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        pq.write_table(table.slice(12 * number, 12), folder / f"train-0000{number}-of-00002.parquet")
    run(folder, tmp_path / "out", min_images=1, knowledge_base=pairs.parent / "knowledge_base.parquet")
    run(pairs, tmp_path / "one", min_images=1)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "one")


def test_a_folder_of_something_else_is_not_overwritten(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(parents=True)
    (tmp_path / "out" / "dataset.json").write_text("dear")

    with pytest.raises(InputError, match="exists already"):
        run(pairs, tmp_path / "out", min_images=1)

    assert (tmp_path / "out" / "dataset.json").read_text() == "dear"


def test_a_folder_with_stages_of_something_else_is_not_touched(pairs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "stages" / "words" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("dear")
    with pytest.raises(InputError, match="exists already"):
        run(pairs, tmp_path / "out", min_images=1)
    assert mine.read_text() == "dear"


def test_a_truth_of_the_split_is_used_whatever_the_file_is_called(pairs: Path, tmp_path: Path) -> None:
    shutil.copy(pairs, pairs.with_name("small.parquet"))
    run(pairs.with_name("small.parquet"), tmp_path / "out", min_images=1)
    assert steps_of(tmp_path / "out")["1+ images"]["precision"] > 0.9


def test_what_cannot_work_is_refused_before_any_work(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for options in (
        {"precision": 0.9},
        {"scorer": str(tmp_path / "empty")},
        {"scorer": f"open_clip:ViT-B-32={tmp_path / 'absent.pt'}"},
        {"detectors": []},
    ):
        with pytest.raises(InputError):
            run(pairs, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_new_numbers_of_classes_are_told(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(pairs, tmp_path / "out", min_images=1)
    run(pairs, tmp_path / "out", min_images=3)
    assert "class ids are not those of the data set that was here" in capsys.readouterr().out


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    pairs: Path, tmp_path: Path, scorer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(pairs, tmp_path / "out", scorer=str(scorer), min_images=1, part_rows=5, dry_run=10)
    printed = capsys.readouterr().out
    # every second part: rows 0 to 4, 10 to 14, 20 to 23
    assert "dry run: 14 of 24 rows" in printed
    for stage in ("linking texts", "checking images", "embedding entities", "all"):
        assert stage in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_a_command_line_of_curate(config: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(curate, as_positional=False)

    parsed = parser.parse_args(["--pairs=pairs", "--output=output", f"--config={config}"])
    options = parser.instantiate_classes(parsed)

    assert options.top_k >= 1 and options.min_images >= 1


def test_real_alt_texts_are_linked(emoji_slice: Path, tmp_path: Path) -> None:
    run(emoji_slice / "train.parquet", tmp_path / "out", min_images=1)

    # three texts in ten name another entity, which linking cannot know
    steps = steps_of(tmp_path / "out")
    assert steps["mentions"]["recall"] >= steps["candidates"]["recall"] > 0.98
    assert steps["best by score"]["recall"] > 0.95
    assert steps["best by score"]["precision"] > 0.65


def test_a_move_of_nothing_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    (tmp_path / "out").mkdir()
    publish(tmp_path / "fresh", tmp_path / "out")
    assert not (tmp_path / "fresh").exists() and not list((tmp_path / "out").iterdir())
