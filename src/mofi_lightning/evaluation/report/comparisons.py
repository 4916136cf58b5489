"""Which differences between models are more than chance, as tables a measure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mofi_lightning.evaluation.report.tables import table, text, title_of
from mofi_lightning.evaluation.suite.comparison import Comparison

_LEVEL = 0.05


def comparison_tables(comparisons: Sequence[Comparison]) -> str:
    """A table a measure with a row a pair of models, the first one open; differences beyond chance in bold.

    Args:
        comparisons: on one data set.
    """
    of_measure: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        of_measure.setdefault(comparison.measure, []).append(comparison)
    blocks: list[str] = []
    for measure, pairs in of_measure.items():
        sure = sum(pair.p_value < _LEVEL for pair in pairs)
        shown = table(["models", "difference", "95 % interval", "p", "queries"], list(map(_row, pairs)))
        blocks.append(
            f"<details{'' if blocks else ' open'}><summary>{text(title_of(measure))} "
            f"<small>{sure} of {len(pairs)} beyond chance</small></summary>{shown}</details>"
        )
    return "".join(blocks)


def with_best_only(comparisons: Sequence[Comparison]) -> bool:
    """Whether pairs of models were left untested: those without the best one by a measure.

    Args:
        comparisons: on one data set.
    """
    of_measure: dict[str, set[frozenset[str]]] = {}
    for pair in comparisons:
        of_measure.setdefault(pair.measure, set()).add(frozenset((pair.better, pair.worse)))
    return any(len(pairs) < math.comb(len(frozenset().union(*pairs)), 2) for pairs in of_measure.values())


def _row(pair: Comparison) -> list[str]:
    low, high = pair.interval
    interval = "-" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
    chance = (
        "-" if math.isnan(pair.p_value) else "&lt; 0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}"
    )
    mark = " class=best" if pair.p_value < _LEVEL else ""
    difference = "-" if math.isnan(pair.difference) else f"{pair.difference:.3f}"
    return [
        f"<th scope=row>{text(pair.better)} &minus; {text(pair.worse)}</th>",
        f"<td{mark}>{difference}</td>",
        f"<td>{interval}</td>",
        f"<td>{chance}</td>",
        f"<td>{pair.queries:,}</td>",
    ]
