"""Which differences between models are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from mofi_lightning.evaluation.measures.confidence import Interval, holm, paired_test
from mofi_lightning.evaluation.suite.results import Result

# with more classes the least p that can be is below 0.01
_FEW_CLUSTERS = 7
# with more models each is compared with the best one only
_ALL_PAIRS = 6


@dataclass(frozen=True)
class Comparison:
    """Two models by one measure on one data set.

    Attributes:
        dataset: name of the data set.
        task: of the evaluator.
        measure: name of the measure.
        better: the model with the higher mean over the queries that both define.
        worse: the other one.
        difference: of these means, 0 or more.
        interval: 95 % interval of the difference, over clusters; NaN with one cluster.
        p_value: of the sign-flip permutation test over clusters, corrected by Holm for all pairs of this
            measure and data set; NaN with one cluster.
        queries: number of queries that both define.
        clusters: number of clusters (classes) they are of.
    """

    dataset: str
    task: str
    measure: str
    better: str
    worse: str
    difference: float
    interval: Interval
    p_value: float
    queries: int
    clusters: int


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Paired tests between models, by data set and by each table measure that has scores.

    All pairs of up to six models; with more, each against the one with the highest mean. What is
    `uncomparable` is left out.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        for measure in result.measures:
            if measure in result.scores:
                groups.setdefault((result.dataset, result.task, measure), []).append(result)
    return [
        found for key, group in groups.items() if not _differing(group) for found in _compare(*key, group)
    ]


def uncomparable(results: Sequence[Result]) -> list[str]:
    """Data sets and tasks whose results are not of the same images and settings, a line each."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.task), []).append(result)
    return [
        f"{dataset}: the results of {', '.join(result.model for result in group)} in {task} are of different "
        f"{what} and cannot be compared; run `mofi evaluate` with these models again"
        for (dataset, task), group in groups.items()
        if (what := _differing(group))
    ]


def _differing(group: Sequence[Result]) -> str:
    measured = [result for result in group if not result.skipped]
    for setting, what in (("data", "images"), ("evaluator", "settings"), ("source", "code")):
        if any(result.settings.get(setting) != measured[0].settings.get(setting) for result in measured):
            return what
    return ""


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    """As a Markdown table with a line on how to read it; empty without comparisons."""
    if not comparisons:
        return ""
    lines = [
        ["data set", "measure", "better", "worse", "difference", "95 % interval", "p", "queries", "classes"],
        ["---", "---", "---", "---", "---:", "---:", "---:", "---:", "---:"],
    ]
    for found in comparisons:
        interval = (
            "-"
            if math.isnan(found.interval.low)
            else f"{found.interval.low:.3f} to {found.interval.high:.3f}"
        )
        lines.append(
            [
                found.dataset,
                found.measure,
                found.better,
                found.worse,
                "-" if math.isnan(found.difference) else f"{found.difference:.3f}",
                interval,
                _p_text(found.p_value),
                f"{found.queries:,}",
                f"{found.clusters:,}",
            ]
        )
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return (
        f"{table}\n\nThe same queries under two models; the interval is a bootstrap over classes "
        "(Student's t with fewer than 30), p of a sign-flip permutation test over classes, corrected by Holm "
        f"for the pairs of a measure and data set.{_least_p(comparisons)}\n"
    )


def _least_p(comparisons: Sequence[Comparison]) -> str:
    """That few classes cannot have a small p, whatever the interval; empty if all have many."""
    few = sorted({found.clusters for found in comparisons if 2 <= found.clusters <= _FEW_CLUSTERS})
    least = "".join(f" With {number} classes p is {2.0 ** (1 - number):.3f} or more." for number in few)
    single = any(found.clusters == 1 for found in comparisons)
    return least + (" One class says nothing about others: it has no interval and no p." if single else "")


def _compare(dataset: str, task: str, measure: str, group: Sequence[Result]) -> list[Comparison]:
    # equal means in the order of names, so that the order of files decides nothing
    ranked = sorted(group, key=lambda result: (-_mean(result, measure), result.model))
    pairs = list(combinations(ranked, 2))
    if len(ranked) > _ALL_PAIRS:
        pairs = [(ranked[0], other) for other in ranked[1:]]
    tests = []
    for first, second in pairs:
        a, b = first.scores[measure], second.scores[measure]
        test = paired_test(a.values, b.values, a.clusters)
        if test.difference < 0:
            first, second = second, first
            interval = Interval(-test.interval.high, -test.interval.low)
            test = test._replace(difference=-test.difference, interval=interval)
        tests.append((first, second, test))
    corrected = holm([test.p_value for _, _, test in tests])
    return [
        Comparison(
            dataset,
            task,
            measure,
            first.model,
            second.model,
            test.difference,
            test.interval,
            p,
            test.queries,
            test.clusters,
        )
        for (first, second, test), p in zip(tests, corrected, strict=True)
    ]


def _mean(result: Result, measure: str) -> float:
    mean = result.scores[measure].mean
    return -math.inf if math.isnan(mean) else mean


def _p_text(p_value: float) -> str:
    if math.isnan(p_value):
        return "-"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
