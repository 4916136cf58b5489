"""Bars with whiskers as inline SVG: values of models beside one another, a colour a model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from mofi_lightning.charts import framed, ticks

# width of a drawing, left end and length of the scale; what is behind it is for the numbers
_WIDTH, _LEFT, _LENGTH = 360, 6, 296
_NAMED, _THIN, _HEADING, _BETWEEN, _AXIS = 34, 14, 22, 6, 20  # heights
_COLOURS, _LONGEST_NAME = 8, 48


class Bar(NamedTuple):
    """A value of something that charts compare.

    Attributes:
        name: of what is compared.
        number: of its colour; the same one has the same colour in every chart.
        value: None if it is not known.
        interval: low and high end of its confidence interval; None if there is none.
    """

    name: str
    number: int
    value: float | None
    interval: tuple[float, float] | None = None


def interval_bars(title: str, bars: Sequence[Bar]) -> str:
    """A `<figure>` with one horizontal bar a value, its name above it, its interval as a whisker.

    Args:
        title: above the chart.
        bars: from top to bottom.
    """
    scale = _Scale.of(bars)
    height = len(bars) * _NAMED
    parts = scale.grid(0, height)
    for place, bar in enumerate(bars):
        top = place * _NAMED
        shown = bar.name if len(bar.name) <= _LONGEST_NAME else f"{bar.name[: _LONGEST_NAME - 1]}…"
        parts.append(f'<text class="name" x="0" y="{top + 13}">{escape(shown)}</text>')
        parts.append(scale.bar(bar, top + 18, 11))
    return framed(title, height + _AXIS, "".join(parts), width=_WIDTH)


def grouped_bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """A `<figure>` with groups of thin horizontal bars below headings on one scale, and a legend.

    Args:
        title: above the chart.
        groups: heading and bars of each, from top to bottom.
    """
    scale = _Scale.of([bar for _, bars in groups for bar in bars])
    height = sum(_HEADING + len(bars) * _THIN + _BETWEEN for _, bars in groups)
    parts = scale.grid(0, height)
    top = 0
    for heading, bars in groups:
        shown = heading if len(heading) <= _LONGEST_NAME else f"{heading[: _LONGEST_NAME - 1]}…"
        parts.append(f'<text class="name" x="0" y="{top + 15}">{escape(shown)}</text>')
        top += _HEADING
        for bar in bars:
            parts.append(scale.bar(bar, top, _THIN - 4))
            top += _THIN
        top += _BETWEEN
    names = dict(sorted((bar.number, bar.name) for _, bars in groups for bar in bars))
    legend = [(name, f'<rect class="{_fill(n)}" width="28" height="8"/>') for n, name in names.items()]
    return framed(title, height + _AXIS, "".join(parts), legend, _WIDTH)


class _Scale(NamedTuple):
    """The horizontal axis of bars: 0 is on it, and so are all values and intervals."""

    ticks: list[float]

    @classmethod
    def of(cls, bars: Sequence[Bar]) -> _Scale:
        ends = [end for bar in bars if bar.value is not None for end in (bar.value, *(bar.interval or ()))]
        return cls(ticks(min([0.0, *ends]), max([0.0, *ends])))

    def across(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        return _LEFT + (value - first) / (last - first) * _LENGTH

    def grid(self, top: float, bottom: float) -> list[str]:
        return [
            f'<path class="grid" d="M{self.across(tick):.1f} {top}V{bottom}"/>'
            f'<text x="{self.across(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>'
            for tick in self.ticks
        ]

    def bar(self, bar: Bar, top: float, height: float) -> str:
        if bar.value is None:
            return f'<text x="{_LEFT}" y="{top + height - 1}">not measured</text>'
        begin, end = sorted((self.across(0.0), self.across(bar.value)))
        number = f"{bar.value:.3f}" if abs(bar.value) < 100 else f"{bar.value:,.4g}"
        about, whisker = f"{bar.name}: {number}", ""
        if bar.interval is not None:
            low, high = map(self.across, bar.interval)
            middle = top + height / 2
            line = f"M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 3}v6M{high:.1f} {middle - 3}v6"
            # the wider line below it keeps the whisker apart from a bar of any colour
            whisker = f'<path class="halo" d="{line}"/><path class="whisker" d="{line}"/>'
            about += f" (95 % interval {bar.interval[0]:.3f} to {bar.interval[1]:.3f})"
        return (
            f'<g><title>{escape(about)}</title><rect class="{_fill(bar.number)}" x="{begin:.1f}" '
            f'y="{top}" width="{end - begin:.1f}" height="{height}"/>{whisker}'
            f'<text class="value" x="{_WIDTH}" y="{top + height - 1}" text-anchor="end">{number}</text></g>'
        )


def _fill(number: int) -> str:
    pale = " pale" if number // _COLOURS % 2 else ""
    return f"bar f{number % _COLOURS}{pale}"
