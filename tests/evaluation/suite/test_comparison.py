import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.measures.confidence import holm, paired_test
from mofi_lightning.evaluation.suite.comparison import compare, comparison_markdown, uncomparable
from mofi_lightning.evaluation.suite.results import Result
from mofi_lightning.types import InputError

CLUSTERS = torch.arange(120) // 4


def _result(model: str, share: float, seed: int, **changes: Any) -> Result:
    values = (torch.rand(120, generator=torch.Generator().manual_seed(seed)) < share).double()
    result = Result(
        model=model,
        dataset="photos",
        task="knn",
        measures=("knn_acc1", "count"),
        metrics={"knn_acc1": float(values.mean()), "count": 120.0},
        errors={},
        intervals={},
        notes=(),
        skipped="",
        pretrained="",
        counts={},
        settings={"data": "d1", "evaluator": {"k": [1]}, "model": model},
        settings_hash="",
        versions={},
        scores={"knn_acc1": Scores(values, CLUSTERS), "other": Scores(values, CLUSTERS)},
    )
    return replace(result, **changes)


def test_all_pairs_are_tested_and_corrected_together():
    models = [_result("low", 0.3, 0), _result("high", 0.9, 1), _result("middle", 0.5, 2)]
    found = compare(models)
    assert [(c.better, c.worse) for c in found] == [("high", "middle"), ("high", "low"), ("middle", "low")]
    assert {c.measure for c in found} == {"knn_acc1"}
    by_name = {model.model: model.scores["knn_acc1"].values for model in models}
    tests = [paired_test(by_name[c.better], by_name[c.worse], CLUSTERS) for c in found]
    assert [c.difference for c in found] == [test.difference for test in tests]
    assert [c.interval for c in found] == [test.interval for test in tests]
    assert [c.p_value for c in found] == holm([test.p_value for test in tests])


def test_more_than_six_models_are_compared_with_the_best_one():
    found = compare([_result(f"m{i}", 0.2 + i / 10, i) for i in range(7)])
    assert [c.better for c in found] == ["m6"] * 6


def test_data_sets_are_compared_apart():
    other = {"dataset": "drawings"}
    found = compare(
        [
            _result("a", 0.9, 0),
            _result("b", 0.2, 1),
            _result("a", 0.2, 2, **other),
            _result("b", 0.9, 3, **other),
        ]
    )
    assert [(c.dataset, c.better) for c in found] == [("photos", "a"), ("drawings", "b")]


def test_better_is_decided_on_the_queries_that_both_define():
    a, b = _result("a", 0.5, 0), _result("b", 0.5, 1)
    values = torch.full((120,), math.nan)
    values[:60] = 1
    a = replace(
        a, scores={"knn_acc1": Scores(torch.cat([torch.zeros(60), torch.ones(60)]).double(), CLUSTERS)}
    )
    b = replace(b, scores={"knn_acc1": Scores(torch.where(values.isnan(), values, 0.3).double(), CLUSTERS)})
    (found,) = compare([a, b])
    assert (found.better, found.worse, found.queries) == ("b", "a", 60)
    assert found.difference == pytest.approx(0.3) == found.interval.low


@pytest.mark.parametrize(
    ("settings", "what"),
    (
        ({"data": "d2", "evaluator": {"k": [1]}}, "images"),
        ({"data": "d1", "evaluator": {"k": [5]}}, "settings"),
        ({"data": "d1", "evaluator": {"k": [1]}, "source": "s2"}, "code"),
    ),
)
def test_results_of_other_images_or_settings_are_not_paired_but_named(settings, what):
    results = [_result("a", 0.9, 0), _result("b", 0.5, 1, settings=settings)]
    assert compare(results) == []
    (line,) = uncomparable(results)
    assert line.startswith(f"photos: the results of a, b in knn are of different {what}")
    assert uncomparable([_result("a", 0.9, 0), _result("c", 0.5, 1)]) == []


def test_scores_of_another_length_are_refused():
    short = {"knn_acc1": Scores(torch.zeros(3).double(), torch.arange(3))}
    with pytest.raises(InputError, match="the same queries"):
        compare([_result("a", 0.9, 0), _result("b", 0.5, 1, scores=short)])


def test_models_without_scores_are_left_out():
    assert compare([_result("a", 0.9, 0), _result("b", 0.5, 1, scores={}, skipped="no text tower")]) == []


def test_markdown_has_a_line_a_comparison():
    one = {"knn_acc1": Scores(torch.ones(120).double(), torch.zeros(120, dtype=torch.long))}
    zero = {"knn_acc1": Scores(torch.zeros(120).double(), torch.zeros(120, dtype=torch.long))}
    found = compare([_result("a", 0.9, 0), _result("b|c", 0.2, 1)])
    found += compare([_result("d", 1, 0, scores=one), _result("e", 1, 0, scores=zero)])
    lines = comparison_markdown(found).splitlines()
    assert lines[2].startswith("| photos | knn_acc1 | a | b\\|c | 0.")
    assert "< 0.001" in lines[2]
    assert lines[3] == "| photos | knn_acc1 | d | e | 1.000 | - | - | 120 | 1 |"
    assert "One class says nothing about others" in lines[-1]
    assert comparison_markdown([]) == ""


def test_few_classes_are_counted_and_the_least_p_is_said():
    of = torch.arange(120) // 40
    values = torch.arange(120).double() / 1000
    a, b = (
        _result(name, 0.5, 0, scores={"knn_acc1": Scores(values + more, of)})
        for name, more in (("a", 0.5), ("b", 0.0))
    )
    found = compare([a, b])
    assert found[0].clusters == 3 and found[0].p_value == 2 / 8
    lines = comparison_markdown(found).splitlines()
    assert lines[2].endswith("| 120 | 3 |")
    assert lines[-1].endswith(" With 3 classes p is 0.250 or more.")
    many = comparison_markdown(compare([_result("a", 0.9, 0), _result("b", 0.2, 1)]))
    assert "or more" not in many and "| 120 | 30 |" in many
