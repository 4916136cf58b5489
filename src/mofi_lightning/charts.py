"""Charts as inline SVG: no library, no external resource, colours that follow the reader's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 12, 40


def histogram(title: str, unit: str, edges: Sequence[float], counts: Sequence[int], more: bool) -> str:
    """A `<figure>` with one bar a bin.

    Args:
        title: above the chart.
        unit: of the values, below the axis.
        edges: of the bins, one more than there are bins; increasing.
        counts: of the bins.
        more: whether the last bin holds everything beyond it too.
    """
    left, right = edges[0], edges[-1]
    y_ticks = ticks(0, max(counts))
    parts = _grid([(y / y_ticks[-1], f"{y:,g}") for y in y_ticks])
    for x in ticks(left, right):
        if left <= x <= right:
            parts.append(_below((x - left) / (right - left), f"{x:,g}"))
    for number, count in enumerate(counts):
        begin, end = edges[number], edges[number + 1]
        x, top = _across((begin - left) / (right - left)), _height(count / y_ticks[-1])
        width = max(0.5, _across((end - left) / (right - left)) - x - 1)
        open_ended = more and number == len(counts) - 1
        name = f"{begin:,g} or more" if open_ended else f"{begin:,g} to {end:,g}"
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{_height(0) - top:.1f}"><title>{escape(name)}: {count:,}</title></rect>'
        )
    return _figure(title, f"{unit}{'; the last bar holds all that is larger' if more else ''}", parts)


def log_log_line(title: str, unit: str, points: Sequence[tuple[float, float]]) -> str:
    """A `<figure>` with one line on logarithmic axes.

    Args:
        title: above the chart.
        unit: of x, below the axis.
        points: (x, y), both at least 1, x increasing.
    """
    x_ticks, y_ticks = (decades(max(point[axis] for point in points)) for axis in (0, 1))
    x_span, y_span = math.log10(x_ticks[-1]), math.log10(y_ticks[-1])
    parts = _grid([(math.log10(y) / y_span, f"{y:,}") for y in y_ticks])
    parts += [_below(math.log10(x) / x_span, f"{x:,}") for x in x_ticks]
    places = [
        f"{_across(math.log10(x) / x_span):.1f} {_height(math.log10(y) / y_span):.1f}" for x, y in points
    ]
    parts.append(f'<path class="line s0" d="M{"L".join(places * (2 if len(places) == 1 else 1))}"/>')
    return _figure(title, unit, parts)


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers whose first is at most `low` and whose last is at least `high`.

    Example:
        >>> ticks(3, 650)
        [0.0, 200.0, 400.0, 600.0, 800.0]
    """
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    magnitude = 10.0 ** math.floor(math.log10(high - low))
    span = (high - low) / magnitude
    step = magnitude * (0.2 if span < 1.5 else 0.5 if span < 3 else 1 if span < 6 else 2)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def decades(high: float) -> list[int]:
    """The powers of ten from 1 to the first that is at least `high`, two or more.

    Example:
        >>> decades(37)
        [1, 10, 100]
    """
    powers = [1, 10]
    while powers[-1] < high:
        powers.append(powers[-1] * 10)
    return powers


def _across(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _height(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid(labels: Sequence[tuple[float, str]]) -> list[str]:
    parts = []
    for share, label in labels:
        y = _height(share)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    return parts


def _below(share: float, label: str) -> str:
    x, y = _across(share), _HEIGHT - _BOTTOM + 18
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{label}</text>'


def _figure(title: str, below: str, parts: Sequence[str]) -> str:
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}'
        f'<text x="{_across(0.5):.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(below)}</text>'
        "</svg></figure>"
    )
