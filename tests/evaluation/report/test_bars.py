from xml.etree import ElementTree

import pytest

from mofi_lightning.evaluation.report.bars import Bar, grouped_bars, interval_bars


def _drawn(figure: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(figure).iter())


def _bars(figure: str) -> list[ElementTree.Element]:
    return [e for e in _drawn(figure) if e.tag == "rect" and e.get("y")]


def test_bars_and_whiskers_stand_at_their_values():
    # ticks of 0..0.4 are 0, 0.1, ..., 0.4 on 296 units that start at 6: one unit of the value is 740
    figure = interval_bars("mAP", [Bar("a", 0, 0.2, (0.1, 0.4)), Bar("b", 1, 0.3)])
    first, second = _bars(figure)
    assert float(first.get("x")) == float(second.get("x")) == 6
    assert float(first.get("width")) == pytest.approx(148)
    assert float(second.get("width")) == pytest.approx(222)
    (whisker,) = [e.get("d") for e in _drawn(figure) if e.get("class") == "whisker"]
    assert whisker == "M80.0 23.5H302.0M80.0 20.5v6M302.0 20.5v6"
    assert float(first.get("y")) + float(first.get("height")) / 2 == 23.5
    assert [e.text for e in _drawn(figure) if e.get("class") == "value"] == ["0.200", "0.300"]
    titles = [e.text for e in _drawn(figure) if e.tag == "title"]
    assert titles == ["a: 0.200 (95 % interval 0.100 to 0.400)", "b: 0.300"]


def test_a_bar_below_zero_goes_to_the_left_of_it():
    # ticks of -0.5..1 are -0.5, 0, 0.5, 1
    (bar,) = _bars(interval_bars("x", [Bar("a", 0, -0.5, (-0.5, 1.0))]))
    assert float(bar.get("x")) == 6
    assert float(bar.get("width")) == pytest.approx(296 / 3, abs=0.1)


@pytest.mark.parametrize("models", [1, 12])
def test_every_model_has_a_name_a_number_and_a_colour_of_its_own_within_the_drawing(models):
    figure = interval_bars("m", [Bar(f"model <{n}>", n, n / 20, (0, n / 20)) for n in range(models)])
    drawing = ElementTree.fromstring(figure).find("svg")
    width, height = map(float, drawing.get("viewBox").split()[2:])
    bars = _bars(figure)
    assert [e.text for e in _drawn(figure) if e.get("class") == "name"] == [
        f"model <{n}>" for n in range(models)
    ]
    assert len({bar.get("class") for bar in bars}) == models
    assert all(float(bar.get("x")) + float(bar.get("width")) <= width for bar in bars)
    assert all(float(bar.get("y")) + float(bar.get("height")) <= height for bar in bars)
    assert [float(bar.get("y")) for bar in bars] == sorted(float(bar.get("y")) for bar in bars)


def test_a_model_without_a_value_is_named_and_has_no_bar():
    figure = interval_bars("m", [Bar("with", 0, 0.5), Bar("without", 1, None)])
    assert len(_bars(figure)) == 1
    texts = [e.text for e in _drawn(figure) if e.tag == "text"]
    assert "without" in texts and "not measured" in texts
    assert _bars(interval_bars("m", [Bar("none", 0, None)])) == []


def test_groups_share_one_scale_and_one_legend():
    figure = grouped_bars(
        "m", [("first", [Bar("a", 0, 0.2), Bar("b", 1, 0.4)]), ("<second>", [Bar("a", 0, 0.4)])]
    )
    widths = [float(bar.get("width")) for bar in _bars(figure)]
    assert widths == pytest.approx([148, 296, 296])
    assert ["".join(e.itertext()) for e in _drawn(figure) if e.tag == "li"] == ["a", "b"]
    assert [e.text for e in _drawn(figure) if e.get("class") == "name"] == ["first", "<second>"]
    classes = [bar.get("class") for bar in _bars(figure)]
    assert classes[0] == classes[2] != classes[1]
