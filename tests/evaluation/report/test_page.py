import re
from html.parser import HTMLParser

import pytest

from mofi_lightning.evaluation.charts import line_chart, read_curves, smoothed, ticks
from mofi_lightning.evaluation.datasets import EvaluationSet, open_evaluation_set
from mofi_lightning.evaluation.report import ModelReport, choose_queries, write_report
from mofi_lightning.types import InputError


class _Balance(HTMLParser):
    """Fails on a closing tag without its opening one."""

    void = frozenset({"meta", "img", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return open_evaluation_set(emoji_slice / "test.parquet")


def _model(name: str, value: float, data: EvaluationSet) -> ModelReport:
    queries = choose_queries(data, 2)
    neighbours = {query: [row for row in range(11) if row != query][:10] for query in queries}
    curves = {"val/map": [(10.0, value), (20.0, value + 0.1)]}
    return ModelReport(name, {"map": value, "map_se": 0.01}, 12.0, curves, neighbours, {"a kind of fault": 2})


def test_report_is_one_balanced_file_without_external_resources(tmp_path, data):
    file = tmp_path / "report.html"
    curation = {"curation.json": {"steps": [{"step": "linked", "labels": 1234, "precision": 0.7}]}}
    write_report(file, data, [_model("a", 0.25, data), _model("b", 0.5, data)], ["map"], curation)
    html = file.read_text()
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"https?://|<script|<link|url\(|@import", html)
    assert html.count('src="data:image/jpeg;base64,') == html.count("<img")
    assert '<td class="best">0.500' in html
    assert "1,234" in html
    assert "a kind of fault" in html
    assert len(html) < 5e6
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_all_text_is_escaped(tmp_path, data):
    evil = "<script>alert(1)</script>"
    names = dict.fromkeys(data.classes, evil)
    hostile = EvaluationSet(evil, data.keys, data.images, data.entities, names=names)
    report = _model(evil, 0.5, data)
    write_report(tmp_path / "r.html", hostile, [report], ["map", evil], {evil: {"steps": [{evil: evil}]}})
    assert "<script" not in (tmp_path / "r.html").read_text()


def test_queries_are_of_different_entities_with_another_image_and_fewer_for_many_models(data):
    queries = choose_queries(data, 2)
    entities = [data.entities[row] for row in queries]
    assert len(set(entities)) == len(queries) == 8
    assert all(data.entities.count(entity) > 1 for entity in entities)
    assert len(choose_queries(data, 40)) == 2
    alone = EvaluationSet("alone", ["a", "b"], [b"", b""], ["x", "y"])
    assert choose_queries(alone, 1) == []


def test_a_file_that_is_no_curation_report_is_named(tmp_path, data):
    with pytest.raises(InputError, match=r"other.json has no list 'steps'"):
        write_report(tmp_path / "r.html", data, [], [], {"other.json": {"rows": 3}})


def test_curves_of_all_starts_of_a_run_are_joined(tmp_path):
    for version, text in enumerate(["step,val/map\n10,0.1\n20,\n20,0.2\n", "step,val/map\n20,0.3\n30,0.4\n"]):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    assert read_curves(tmp_path, ["val/map", "val/loss"]) == {"val/map": [(10, 0.1), (20, 0.3), (30, 0.4)]}


def test_long_curves_are_averaged_to_what_can_be_drawn():
    curve = smoothed([(float(x), 2.0 * x) for x in range(1200)])
    assert len(curve) == 120
    assert curve[0] == (4.5, 9.0)


@pytest.mark.parametrize(("low", "high"), [(0.12, 0.37), (0, 0), (-3, 5), (1e-4, 2e-4), (0, 650), (7.3, 7.3)])
def test_ticks_are_few_and_cover_the_range(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert found[0] <= low and high <= found[-1]


def test_chart_leaves_out_what_is_not_finite_and_is_empty_without_points():
    assert line_chart("loss", {"a": [(1.0, float("nan"))]}, {"a": 0}) == ""
    chart = line_chart("loss", {"a": [(1.0, 2.0), (2.0, float("inf")), (3.0, 1.0)]}, {"a": 0})
    assert "nan" not in chart and "inf" not in chart
