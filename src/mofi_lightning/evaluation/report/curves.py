"""Line charts as inline SVG: no library, no external resource, colours that follow the reader's theme."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from mofi_lightning.charts import ticks

Curve = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_POINTS = 120


def read_curves(run: Path, columns: Sequence[str]) -> dict[str, Curve]:
    """Curves of the `metrics.csv` files of a run, in its folder or in its `logs`, as (step, value), by step.

    A resumed run leaves one file a start; the later file wins where both have a step. Lines that are torn or
    hold no numbers are left out.
    """
    points: dict[str, dict[float, float]] = {column: {} for column in columns}
    files = [*run.glob("metrics.csv"), *(run / "logs").rglob("metrics.csv")]
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        for row in _rows(file):
            for column in columns:
                step, value = _number(row.get("step")), _number(row.get(column))
                if step is not None and value is not None:
                    points[column][step] = value
    return {column: smoothed(sorted(values.items())) for column, values in points.items() if values}


def _rows(file: Path) -> Iterator[dict[str, str]]:
    text = file.read_text(errors="replace")
    # a line without its end was torn, and so may be its last number
    whole = text[: text.rfind("\n") + 1]
    try:
        yield from csv.DictReader(io.StringIO(whole, newline=""))
    except csv.Error:
        return


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def smoothed(curve: Curve) -> Curve:
    """At most 120 points, each the mean of as many neighbours."""
    size = math.ceil(len(curve) / _POINTS) or 1
    groups = [curve[first : first + size] for first in range(0, len(curve), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def line_chart(title: str, curves: Mapping[str, Curve], numbers: Mapping[str, int]) -> str:
    """A `<figure>` with one line a curve over training steps.

    Args:
        title: above the chart.
        curves: by name; values that are not finite are left out.
        numbers: of each name; the same number has the same colour and dashes in every chart.
    """
    drawn = {
        name: [(x, y) for x, y in curve if math.isfinite(x) and math.isfinite(y)]
        for name, curve in curves.items()
    }
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        return ""
    x_ticks = ticks(0.0, max(x for x, _ in points))
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    left, right = x_ticks[0], x_ticks[-1]
    low, high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for y in y_ticks:
        _, height = at(left, y)
        parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        across, _ = at(x, low)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>')
    legend = []
    for name, curve in drawn.items():
        style = f"s{numbers[name] % 8}"
        path = "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in curve)
        if len(curve) == 1:
            parts.append(
                '<circle class="{} dot" cx="{:.1f}" cy="{:.1f}" r="3"/>'.format(style, *at(*curve[0]))
            )
        parts.append(f'<path class="line {style}" d="M{path}"/>')
        legend.append(
            f'<li><svg viewBox="0 0 28 8" aria-hidden="true"><path class="line {style}" d="M0 4H28"/></svg>'
            f"{escape(name)}</li>"
        )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )
