import re
from xml.etree import ElementTree

import pytest

from mofi_lightning.charts import compared_histograms, decades, histogram, log_log_line, share_bars, ticks


def drawn(figure: str) -> list[ElementTree.Element]:
    """The elements of a figure, which is well-formed."""
    return list(ElementTree.fromstring(figure).iter())


@pytest.mark.parametrize(("low", "high"), [(0.12, 0.37), (0, 0), (-3, 5), (1e-4, 2e-4), (0, 650), (7.3, 7.3)])
def test_ticks_are_few_and_cover_the_range(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert found[0] <= low and high <= found[-1]


def test_decades_reach_the_largest_value():
    assert decades(1) == [1, 10]
    assert decades(1000) == [1, 10, 100, 1000]
    assert decades(1001)[-1] == 10_000


def test_the_bars_of_a_histogram_are_as_high_as_their_counts():
    elements = drawn(histogram("<width>", "pixels", [0, 10, 20, 30], [5, 10, 0], True))
    heights = [float(element.get("height")) for element in elements if element.get("class") == "bar"]
    assert heights[0] * 2 == pytest.approx(heights[1], abs=0.2) and heights[2] == 0
    names = [element.text for element in elements if element.tag == "title"]
    assert names == ["0 to 10: 5", "10 to 20: 10", "20 or more: 0"]
    assert elements[1].text == "<width>"


def test_a_line_on_logarithmic_axes_is_straight_for_a_power_law():
    figure = log_log_line("tail", "entities", [(1, 1000), (10, 100), (100, 10), (1000, 1)])
    (path,) = re.findall(r'class="line s0" d="M([^"]+)"', figure)
    x, y = zip(*(map(float, point.split()) for point in path.split("L")), strict=True)
    assert [x[1] - x[0], x[2] - x[1]] == pytest.approx([x[3] - x[2]] * 2, abs=0.2)
    assert [y[1] - y[0], y[2] - y[1]] == pytest.approx([y[3] - y[2]] * 2, abs=0.2)
    assert y[0] < y[3]


def test_one_bin_and_one_point_can_be_drawn():
    for figure in (histogram("w", "", [64, 65], [7], False), log_log_line("t", "", [(1, 1)])):
        assert "nan" not in figure and drawn(figure)


def test_compared_histograms_share_one_scale_and_the_marker_stands_at_its_value():
    edges = [-2, 0, 2, 4]
    figure = compared_histograms(
        "scores", "score", edges, ("<labels>", [2, 8, 4]), ("decoys", [8, 4, 0]), ("at 2", 2)
    )
    bars = [e for e in drawn(figure) if e.get("class") == "bar" and e.get("x")]
    tops = [float(bar.get("y")) for bar in bars]
    base = tops[0] + float(bars[0].get("height"))
    assert [base - top for top in tops] == pytest.approx(
        [(base - tops[1]) * n / 8 for n in (2, 8, 4)], abs=0.2
    )
    (outline,) = re.findall(r'class="line s1" d="M([^"]+Z?)"/><path class="marker"', figure)
    assert [float(y) for y in re.findall(r"V([\d.]+)H", outline)] == pytest.approx(
        [tops[1], tops[2], base], abs=0.2
    )
    (marker,) = re.findall(r'class="marker" d="M([\d.]+) ', figure)[:1]
    assert float(marker) == pytest.approx(float(bars[2].get("x")), abs=0.2)
    names = ["".join(e.itertext()) for e in drawn(figure) if e.tag == "li"]
    assert names == ["<labels>", "decoys", "at 2"]


def test_a_marker_beyond_the_bins_stands_at_their_end():
    figures = [compared_histograms("t", "", [0, 1, 2], ("n", [1, 1]), None, ("m", x)) for x in (-9, 0, 2, 99)]
    at = [float(re.findall(r'class="marker" d="M([\d.]+) ', figure)[0]) for figure in figures]
    assert at[0] == at[1] < at[2] == at[3]


def test_bars_of_shares_are_as_long_as_their_shares():
    figure = share_bars("left", [("<all>", 1.0), ("half", 0.5), ("none", 0.0)])
    widths = {kind: [] for kind in ("bar", "track")}
    for element in drawn(figure):
        if element.get("class") in widths:
            widths[element.get("class")].append(float(element.get("width")))
    assert widths["bar"] == pytest.approx([widths["track"][0] * share for share in (1, 0.5, 0)])
    texts = [element.text for element in drawn(figure) if element.tag == "text"]
    assert texts == ["<all>", "100.0%", "half", "50.0%", "none", "0.0%"]
    assert drawn(share_bars("nothing", []))
