import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonargparse import ArgumentParser

from mofi_lightning.curation.pipeline import curate
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
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet")
    pq.write_table(pa.Table.from_pylist(entities), folder / "knowledge_base.parquet")
    return folder / "train.parquet"


def rows_of(output: Path) -> list[Row]:
    reader = ShardReader(open_dataset(output))
    return [reader[index] for index in range(len(reader))]


def steps_of(output: Path) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in json.loads((output / "curation.json").read_text())["steps"]}


def test_texts_alone_make_a_data_set_with_vocabulary_and_counts(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    curate(pairs, output, min_images=2)

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

    report = json.loads((output / "curation.json").read_text())
    assert sum(report["undecodable_images"].values()) == 2
    # before the last step 21 labels of 22 images, red/0's is wrong; 23 texts name what they show less red/0's
    best = steps_of(output)["best by score"]
    assert (best["rows"], best["labels"], best["coverage"]) == (22, 21, pytest.approx(21 / 24))
    assert (best["precision"], best["recall"]) == (pytest.approx(20 / 21), pytest.approx(20 / 23))


def test_a_scorer_chooses_and_filters(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    output = tmp_path / "out"
    curate(pairs, output, scorer=scorer, keep=0.5, min_images=1, templates=["{name}"])

    steps = steps_of(output)
    assert list(steps) == [
        "all candidates",
        "best by text",
        "best by score",
        "highest 50%",
        "1+ images",
    ]
    assert steps["highest 50%"]["labels"] == round(0.5 * steps["best by score"]["labels"])
    scores = [score for row in rows_of(output) for score in row.scores]
    left_out = pq.read_table(output / "stages" / "scored.parquet").to_pylist()
    assert len(scores) == steps["1+ images"]["labels"]
    assert [row["key"] for row in left_out if row["error"]] == ["green/1", "green/2"]
    assert all(len(row["similarities"]) == len(row["entities"]) for row in left_out)


def test_images_keep_several_entities_best_first(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    curate(pairs, tmp_path / "out", scorer=scorer, top_k=3, min_images=1)

    rows = rows_of(tmp_path / "out")
    assert max(len(row.entities) for row in rows) <= 3
    assert all(list(row.scores) == sorted(row.scores, reverse=True) for row in rows)


def test_other_criteria_reuse_the_stages_and_changed_inputs_do_not(
    pairs: Path, tmp_path: Path, scorer: Path
) -> None:
    output = tmp_path / "out"
    stages = [output / "stages" / name for name in ("linked.parquet", "scored.parquet")]

    def times() -> list[int]:
        return [path.stat().st_mtime_ns for path in stages]

    curate(pairs, output, scorer=scorer, min_images=1)
    first, written = times(), (output / "dataset.json").stat().st_mtime_ns
    curate(pairs, output, scorer=scorer, min_images=1)
    assert times() == first
    assert (output / "dataset.json").stat().st_mtime_ns == written

    curate(pairs, output, scorer=scorer, min_images=2, keep=0.9)
    assert times() == first
    assert (output / "dataset.json").stat().st_mtime_ns != written

    curate(pairs, output, scorer=scorer, min_images=1, templates=["{name}"])
    assert times()[0] == first[0]
    assert times()[1] != first[1]

    pq.write_table(pq.read_table(pairs).slice(0, 20), pairs)
    curate(pairs, output, scorer=scorer, min_images=1)
    assert times()[0] != first[0]
    assert open_dataset(output).rows == 17  # of 20, two cannot be read and one names nothing


def test_a_run_killed_while_writing_is_finished_by_the_next(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    curate(pairs, output, min_images=1)
    expected = rows_of(output)
    # what is left when it dies while the data set is moved to its place
    (output / "curation.json").unlink()
    (output / "dataset.json").unlink()
    (output / "stages" / "dataset").mkdir()
    (output / "stages" / "dataset" / "vocabulary.arrow").write_text("half")

    curate(pairs, output, min_images=1)

    assert rows_of(output) == expected


def test_labels_do_not_depend_on_the_truth(pairs: Path, tmp_path: Path) -> None:
    truth = pairs.parent / "truth.parquet"
    curate(pairs, tmp_path / "with", min_images=1)
    rows = pq.read_table(truth).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "entity": "Q-red-dot"} for row in rows]), truth)
    curate(pairs, tmp_path / "wrong", min_images=1)
    truth.unlink()
    curate(pairs, tmp_path / "without", min_images=1)

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

    with pytest.raises(InputError, match="no pairs file at"):
        curate(folder / "absent.parquet", output)
    with pytest.raises(InputError, match="has no rows"):
        curate(folder / "empty.parquet", output)
    with pytest.raises(InputError, match=r"has no column 'image', 'text' \(it has key\)"):
        curate(folder / "keys.parquet", output)
    with pytest.raises(InputError, match="is no parquet file, or damaged"):
        curate(folder / "text.parquet", output)
    with pytest.raises(InputError, match="none of the 24 images"):
        curate(folder / "broken.parquet", output)
    with pytest.raises(InputError, match="no knowledge base at"):
        curate(pairs, output, knowledge_base=tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="no truth file at"):
        curate(pairs, output, truth=tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="no scorer at"):
        curate(pairs, output, scorer=tmp_path / "absent")
    with pytest.raises(InputError, match="candidates 0 is out of range"):
        curate(pairs, output, candidates=0)
    with pytest.raises(InputError, match=r"no label is left .*21 after 'best by score'"):
        curate(pairs, output, min_images=100)


def test_a_run_is_a_scorer_and_only_its_model_counts(pairs: Path, tmp_path: Path, scorer: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "out"
    shutil.copytree(scorer, run / "model")
    curate(pairs, output, run, min_images=2)
    scored = (output / "stages" / "scored.parquet").stat().st_mtime_ns
    (run / "logs").mkdir()
    (run / "logs" / "metrics.csv").write_text("step")
    curate(pairs, output, run, min_images=2)
    curate(pairs, output, run / "model", min_images=2)
    assert (output / "stages" / "scored.parquet").stat().st_mtime_ns == scored


def test_a_key_that_comes_twice_is_named_and_leaves_no_folder(pairs: Path, tmp_path: Path) -> None:
    table = pq.read_table(pairs)
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), pairs)
    with pytest.raises(InputError, match=r"key 'red/3' comes twice in pairs file .*train\.parquet"):
        curate(pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_overwritten(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(parents=True)
    (tmp_path / "out" / "dataset.json").write_text("dear")

    with pytest.raises(InputError, match="exists already"):
        curate(pairs, tmp_path / "out", min_images=1)

    assert (tmp_path / "out" / "dataset.json").read_text() == "dear"


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_a_command_line_of_curate(config: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(curate, as_positional=False)

    parsed = parser.parse_args(["--pairs=pairs", "--output=output", f"--config={config}"])

    assert 0 < parsed.keep <= 1


def test_real_alt_texts_are_linked(emoji_slice: Path, tmp_path: Path) -> None:
    curate(emoji_slice / "train.parquet", tmp_path / "out", min_images=1)

    # three texts in ten name another entity, which linking cannot know
    steps = steps_of(tmp_path / "out")
    assert steps["all candidates"]["recall"] > 0.98
    assert steps["best by score"]["recall"] > 0.95
    assert steps["best by score"]["precision"] > 0.65
