"""Charts as inline SVG: no library, no external resource, colours that follow the reader's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 12, 40
_BAND, _PERCENT = 40, 56  # height of a bar with its name, width of the number behind it


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


def compared_histograms(
    title: str,
    unit: str,
    edges: Sequence[float],
    filled: tuple[str, Sequence[int]],
    outlined: tuple[str, Sequence[int]] | None = None,
    marker: tuple[str, float] | None = None,
) -> str:
    """A `<figure>` with one histogram as bars, another one as a line over it, and a vertical line.

    Args:
        title: above the chart.
        unit: of the values, below the axis.
        edges: of the bins of both, one more than there are bins; increasing.
        filled: name and counts of the bars.
        outlined: name and counts of the line.
        marker: name and value of the vertical line; a value beyond the bins is drawn at their end.
    """
    left, right = edges[0], edges[-1]
    y_ticks = ticks(0, max(*filled[1], *(outlined[1] if outlined else ()), 1))

    def across(value: float) -> float:
        return _across((value - left) / (right - left))

    def height(count: float) -> float:
        return _height(count / y_ticks[-1])

    parts = _grid([(y / y_ticks[-1], f"{y:,g}") for y in y_ticks])
    parts += [
        _below((x - left) / (right - left), f"{x:,g}") for x in ticks(left, right) if left <= x <= right
    ]
    legend = [(filled[0], '<rect class="bar" width="28" height="8"/>')]
    for begin, end, count in zip(edges[:-1], edges[1:], filled[1], strict=True):
        parts.append(
            f'<rect class="bar" x="{across(begin):.1f}" y="{height(count):.1f}" '
            f'width="{max(0.5, across(end) - across(begin) - 0.5):.1f}" '
            f'height="{height(0) - height(count):.1f}">'
            f"<title>{begin:,.4g} to {end:,.4g}: {count:,}</title></rect>"
        )
    if outlined:
        steps = "".join(
            f"V{height(count):.1f}H{across(end):.1f}"
            for end, count in zip(edges[1:], outlined[1], strict=True)
        )
        parts.append(
            f'<path class="line s1" d="M{across(left):.1f} {height(0):.1f}{steps}V{height(0):.1f}"/>'
        )
        legend.append((outlined[0], '<path class="line s1" d="M0 4H28"/>'))
    if marker:
        x = min(max(across(marker[1]), across(left)), across(right))
        parts.append(f'<path class="marker" d="M{x:.1f} {height(0):.1f}V{_TOP}"/>')
        legend.append((marker[0], '<path class="marker" d="M0 4H28"/>'))
    return _figure(title, unit, parts, legend)


def share_bars(title: str, shares: Sequence[tuple[str, float]]) -> str:
    """A `<figure>` with one horizontal bar a share, their names above them.

    Args:
        title: above the chart.
        shares: name and share, 0..1.
    """
    parts = []
    for number, (name, share) in enumerate(shares):
        y = number * _BAND
        width = share * (_WIDTH - _PERCENT)
        parts.append(
            f'<text class="name" x="0" y="{y + 14}">{escape(name)}</text>'
            f'<rect class="track" x="0" y="{y + 20}" width="{_WIDTH - _PERCENT}" height="12"/>'
            f'<rect class="bar" x="0" y="{y + 20}" width="{width:.1f}" height="12"/>'
            f'<text x="{_WIDTH}" y="{y + 31}" text-anchor="end">{share:.1%}</text>'
        )
    return framed(title, max(1, len(shares)) * _BAND, "".join(parts))


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


def framed(
    title: str, height: float, drawing: str, legend: Sequence[tuple[str, str]] = (), width: float = _WIDTH
) -> str:
    """A `<figure>` of a title, a drawing and a legend.

    Args:
        title: above the drawing.
        height: of the drawing, in its own units.
        drawing: inner SVG.
        legend: name, and an SVG of 28 x 8 for it, of each entry.
        width: of the drawing.
    """
    names = "".join(
        f'<li><svg viewBox="0 0 28 8" aria-hidden="true">{sign}</svg>{escape(name)}</li>'
        for name, sign in legend
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{drawing}</svg>'
        + (f'<ul class="legend">{names}</ul>' if legend else "")
        + "</figure>"
    )


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


def _figure(title: str, below: str, parts: Sequence[str], legend: Sequence[tuple[str, str]] = ()) -> str:
    unit = f'<text x="{_across(0.5):.0f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(below)}</text>'
    return framed(title, _HEIGHT, f"{''.join(parts)}{unit}", legend)
