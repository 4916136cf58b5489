import json
from pathlib import Path

import numpy as np
import pytest

from mofi_lightning.curation.report.counts import Report, Step, Tally

# what the seven images of a part show: rows of a knowledge base of three, -1 unknown, -2 outside of it
SHOWN = np.array([0, 0, 2, 2, -1, -2, 0])


def test_measures_are_those_counted_by_hand() -> None:
    tally = Tally("step", 3)
    tally.add(np.array([0, 1, 2, 4, 5, 6]), np.array([0, 1, 1, 2, 2, 0]), SHOWN)

    # right: 0, 6; wrong: 1, 2, 5; unknown: 4. Labelled: all of 7 but 3. Three texts name what is shown.
    expected = Step("step", 6, 6, 3, pytest.approx(6 / 7), pytest.approx(2 / 5), pytest.approx(2 / 3))
    assert tally.step(7, 6, 3) == expected


def test_an_image_with_two_labels_is_covered_once() -> None:
    tally = Tally("step", 2)
    tally.add(np.array([3, 3]), np.array([0, 1]), None)

    assert tally.step(4, 4, None) == Step("step", 4, 2, 2, 0.25)


def test_nothing_is_judged_where_nobody_knows_what_the_images_show() -> None:
    tally = Tally("step", 3)
    tally.add(np.array([4]), np.array([1]), SHOWN)

    assert tally.step(7, 7, 0) == Step("step", 7, 1, 1, 1 / 7)


def test_a_step_without_labels_covers_nothing() -> None:
    tally = Tally("step", 3)
    none = np.zeros(0, dtype=np.int32)
    tally.add(none, none, SHOWN)

    assert tally.step(7, 7, 3) == Step("step", 7, 0, 0, 0.0, None, 0.0)


def test_parts_added_one_by_one_or_merged_are_counted_as_one_corpus_would_be() -> None:
    generator = np.random.default_rng(0)
    images, entities = 60, 12
    shown = generator.integers(-2, entities, images)
    labels = {(int(generator.integers(images)), int(generator.integers(entities))) for _ in range(90)}
    named = 25
    # counted naively, over the corpus as a whole
    right = sum(shown[row] == entity for row, entity in labels)
    judged = sum(shown[row] != -1 for row, _ in labels)
    expected = Step(
        "step",
        50,
        len(labels),
        len({entity for _, entity in labels}),
        pytest.approx(len({row for row, _ in labels}) / images),
        pytest.approx(right / judged),
        pytest.approx(right / named),
    )

    one_by_one, merged = Tally("step", entities), Tally("step", entities)
    for start in range(0, images, 20):
        part = sorted((row - start, entity) for row, entity in labels if start <= row < start + 20)
        rows, found = np.array(part).T
        other = Tally("step", entities)
        for tally in (one_by_one, other):
            tally.add(rows, found, shown[start : start + 20])
        merged.merge(other)

    assert one_by_one.step(images, 50, named) == expected
    assert merged.step(images, 50, named) == expected


def test_a_saved_report_holds_all_that_is_known(tmp_path: Path) -> None:
    step = Step("step", 6, 5, 3, 0.5, None, 0.25)
    Report("print", {"damaged": 2}, [step], {"image size": 4}, 1.5, 0.9).save(tmp_path / "curation.json")

    assert json.loads((tmp_path / "curation.json").read_text()) == {
        "fingerprint": "print",
        "undecodable_images": {"damaged": 2},
        "steps": [
            {
                "step": "step",
                "rows": 6,
                "labels": 5,
                "entities": 3,
                "coverage": 0.5,
                "precision": None,
                "recall": 0.25,
            }
        ],
        "removed": {"image size": 4},
        "threshold": 1.5,
        "estimated_precision": 0.9,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["curation.json"]


def test_a_printed_report_names_steps_filters_faults_and_the_threshold(capsys) -> None:
    step = Step("best [b]", 6, 1234, 3, 0.5, 0.75)
    Report("print", {"damaged [/]": 2}, [step], {"image size": 4}, 1.5, 0.9).print()

    printed = capsys.readouterr().out
    for text in (
        "best [b]",
        "1,234",
        "0.750",
        "left out 4: image size",
        "left out 2: damaged [/]",
        "labels score 1.500 or more",
        "estimated precision 0.900",
    ):
        assert text in printed
