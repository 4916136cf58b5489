import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.images import encoded

from mofi_lightning.evaluation.base import Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.pairs import PairsFile
from mofi_lightning.evaluation.embedding.images import EmbeddedImages, embed_images
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.evaluation.models.words import NamedModel
from mofi_lightning.evaluation.report.contents import ModelReport
from mofi_lightning.evaluation.report.page import write_report
from mofi_lightning.evaluation.suite.comparison import compare
from mofi_lightning.evaluation.suite.results import Result
from mofi_lightning.evaluation.suite.running import Evaluated
from mofi_lightning.types import InputError

EVIL = "<script>alert('1')</script>&\"\u202e"


class _Page(HTMLParser):
    """A page's elements; fails on a closing tag without its opening one."""

    void = frozenset({"meta", "input"})

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text = file.read_text()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and wanted.items() <= a.items()]

    def table(self, heading: str) -> list[list[str]]:
        """Texts of the first table after a heading."""
        html = re.search(f">{re.escape(heading)}</h[34]>.*?<table>(.*?)</table>", self.text, re.DOTALL)
        assert html is not None
        rows = re.findall(r"<tr>(.*?)</tr>", html[1])
        return [
            [re.sub(r"<[^>]+>", "", c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows
        ]


@pytest.fixture(scope="module")
def data(emoji_slice) -> EvaluationSet:
    return PairsFile(emoji_slice / "test.parquet").open()


@pytest.fixture(scope="module")
def embedded(data) -> EmbeddedImages:
    return embed_images(RawPixels(), data.images)


def _result(model: str, dataset: str, measures: dict[str, float | None], **changed) -> Result:
    known = {name: value for name, value in measures.items() if value is not None}
    fields = {
        "task": "retrieval",
        "measures": tuple(name for name in measures if "/" not in name),
        "metrics": measures,
        "errors": dict.fromkeys(known, 0.01),
        "intervals": {name: (value - 0.02, value + 0.03) for name, value in known.items()},
        "notes": (),
        "skipped": "",
        "pretrained": "",
        "counts": {},
        "settings": {},
        "settings_hash": "",
        "versions": {},
    }
    return Result(model=model, dataset=dataset, **(fields | changed))


def _report(data, embedded, name="a", dataset="set", map=0.25, **changed) -> ModelReport:
    precision = torch.linspace(0, 0.9, len(data.keys), dtype=torch.float64).flip(0)
    precision[list(embedded.failed)] = torch.nan
    scores = {"map": Scores(precision, data.labels())}
    results = {"retrieval": _result(name, dataset, {"map": map}, scores=scores)}
    return replace(
        ModelReport.of(Evaluated(NamedModel(name, None, None), dataset, data, embedded, results)), **changed
    )


def _noted(report: ModelReport, name: str, *notes: str) -> ModelReport:
    results = {task: replace(result, notes=notes) for task, result in report.results.items()}
    return replace(report, name=name, results=results)


@pytest.fixture(scope="module")
def report(data, embedded) -> ModelReport:
    return _report(data, embedded)


def test_report_is_one_balanced_file_without_external_resources_and_each_image_is_in_it_once(
    tmp_path, data, report
):
    curation = {"curated": {"steps": [{"step": "linked", "labels": 1234, "precision": 0.7}]}}
    file = tmp_path / "report.html"
    write_report(file, [report, _noted(report, "b", "2 images left out: a kind")], curation)
    page = _Page(file)
    assert not re.search(r"https?://|<script|<link|url\(|@import|<img", page.text)
    images = page.all("image")
    assert len(images) == len({image["id"] for image in images}) == len(data.keys)
    assert len({image["href"] for image in images}) > 0.9 * len(data.keys)
    assert all(image["href"].startswith("data:image/webp;base64,") for image in images)
    assert {use["href"] for use in page.all("use")} == {f"#{image['id']}" for image in images}
    assert "1,234" in page.text
    assert "2 images left out: a kind (b)" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_map_has_a_dot_with_a_thumbnail_for_each_image_of_each_model(tmp_path, data, report):
    write_report(tmp_path / "r.html", [report, replace(report, name="b")], {})
    page = _Page(tmp_path / "r.html")
    for number in (0, 1):
        dots = re.findall(
            r'--x:([\d.]+);--y:([\d.]+)"><input type=radio '
            rf'name="map0-{number}"><svg [^>]+><use href="#t0-(\d+)"/>',
            page.text,
        )
        assert sorted(int(row) for *_, row in dots) == list(range(len(data.keys)))
        for x, y, row in dots:
            across, up = report.projection.points[int(row)]
            # three per cent of margin, and y goes down
            assert float(x) == pytest.approx(3 + 94 * across, abs=0.06)
            assert float(y) == pytest.approx(97 - 94 * up, abs=0.06)
    assert len(page.all("div", role="radiogroup")) == 2


def test_the_same_contents_give_the_same_bytes(tmp_path, data, embedded):
    for name in ("one", "two"):
        write_report(tmp_path / f"{name}.html", [_report(data, embedded)], {})
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_all_names_are_escaped_and_show_what_would_be_hidden(tmp_path, data, embedded):
    hostile = replace(data, name=EVIL, names=dict.fromkeys(data.classes, EVIL), notes=(EVIL,))
    report = _report(hostile, embedded, name=EVIL, dataset=EVIL)
    results = {
        "retrieval": _result(EVIL, EVIL, {"map": 0.5, EVIL: 0.5, f"map/{EVIL}": 0.5}, notes=(EVIL,)),
        "zero": _result(EVIL, EVIL, {"acc1": None}, skipped=EVIL),
    }
    report = replace(report, results=results)
    other = replace(report, dataset="other", curves={"val/map": [(0.0, 1.0), (1.0, 2.0)]})
    write_report(tmp_path / "r.html", [report, other], {EVIL: {"steps": [{EVIL: EVIL}]}})
    text = _Page(tmp_path / "r.html").text
    assert "<script" not in text and "\u202e" not in text


def test_the_best_is_bold_and_what_is_missing_is_explained(tmp_path, report):
    with_text = _result("b", "set", {"acc1": 0.125, "acc5": None})
    no_text = _result("a", "set", {"acc1": None, "acc5": None}, skipped="the model has no text tower")
    first = replace(report, results=report.results | {"zero": no_text})
    second = replace(
        report,
        name="b",
        seconds=1234.0,
        results={"retrieval": _result("b", "set", {"map": 0.5}), "zero": with_text},
    )
    write_report(tmp_path / "r.html", [first, second], {})
    page = _Page(tmp_path / "r.html")
    assert page.table("Results") == [
        ["model", "mAP", "zero-shot top-1", "training, s"],
        ["a", "0.250&plusmn;&thinsp;0.010", "-1", "-2"],
        ["b", "0.500&plusmn;&thinsp;0.010", "0.125&plusmn;&thinsp;0.010", "1,234"],
    ]
    assert '<td class="best" title="95 % interval 0.480 to 0.530">0.500' in page.text
    assert '<td title="the model has no text tower">-<sup>1</sup>' in page.text
    assert '<td class="cost">1,234</td>' in page.text
    assert '<td class="cost" title="no training time was recorded">-<sup>2' in page.text
    assert "<li>the model has no text tower</li><li>no training time was recorded</li>" in page.text
    assert "zero-shot top-5: the model has no text tower; not defined on this data" in page.text


def test_domains_have_a_table_and_colour_the_map(tmp_path, data, embedded):
    domains = ["Faces" if row % 3 else "SOP" for row in range(len(data.keys))]
    of_domains = replace(data, domains=domains)
    values = {"map": 0.5, "map/SOP": 0.25, "map/Faces": 0.75}
    report = replace(_report(of_domains, embedded), results={"retrieval": _result("a", "set", values)})
    better = {"map": 0.25, "map/SOP": 0.5, "map/Faces": 0.5}
    other = replace(report, name="b", results={"retrieval": _result("b", "set", better)})
    write_report(tmp_path / "r.html", [report, other], {})
    page = _Page(tmp_path / "r.html")
    rows = [[cell.partition("&")[0] for cell in row] for row in page.table("Domains")]
    assert rows == [
        ["model", "all", "SOP", "Faces"],
        ["a", "0.500", "0.250", "0.750"],
        ["b", "0.250", "0.500", "0.500"],
    ]
    assert 'class="best share" title="95 % interval 0.730 to 0.780" style="--share:75.0%">0.750' in page.text
    styles = dict(
        re.findall(r'<label class=(\w+) [^>]+><input[^>]+><svg [^>]+><use href="#t0-(\d+)"', page.text)[::-1]
    )
    assert set(styles) == {"c0", "c1"}
    assert {row: domains[int(row)] for row in styles.values()} == {styles["c0"]: "SOP", styles["c1"]: "Faces"}


def test_without_domains_the_most_frequent_entities_have_a_colour(tmp_path, data, embedded):
    entities = ["often"] * 6 + ["twice"] * 2 + [f"e{row}" for row in range(8, len(data.keys))]
    report = _report(replace(data, entities=entities, names={}, captions=()), embedded)
    write_report(tmp_path / "r.html", [report], {})
    text = (tmp_path / "r.html").read_text()
    legend = re.findall(r'<li><i class="(\w+)"></i>([^<]+) <small>([\d,]+)', text)
    rest = f"{len(data.keys) - 8:,}"
    assert legend == [("c0", "often", "6"), ("c1", "twice", "2"), ("rest", "all others", rest)]
    dots = re.findall(r"<label class=(\w+)", text)
    assert [dots.count(style) for style in ("c0", "c1", "rest")] == [6, 2, len(data.keys) - 8]
    # what has no colour is drawn first and hides nothing
    assert dots[0] == "rest" and dots[-1] == "c1"


def test_differences_between_models_are_those_of_the_paired_tests(tmp_path, data, report):
    worse = report.results["retrieval"]
    scores = worse.scores["map"]
    better = replace(
        worse,
        model="b <&>",
        metrics={"map": 0.5},
        scores={"map": Scores((scores.values + 0.05).clamp(max=1), scores.clusters)},
    )
    other = replace(report, name="b <&>", results={"retrieval": better})
    write_report(tmp_path / "r.html", [report, other], {})
    page = _Page(tmp_path / "r.html")
    (found,) = compare([worse, better])
    assert (found.better, found.difference) == ("b <&>", pytest.approx(0.05))
    interval = f"{found.interval.low:.3f} to {found.interval.high:.3f}"
    assert page.table("Differences between models") == [
        ["models", "difference", "95 % interval", "p", "queries"],
        ["b &lt;&amp;&gt; &minus; a", "0.050", interval, "&lt; 0.001", str(len(data.keys))],
    ]
    assert "1 of 1 beyond chance" in page.text
    write_report(tmp_path / "r.html", [report], {})
    assert "Differences between models" not in (tmp_path / "r.html").read_text()


def test_several_data_sets_have_an_index_and_a_mean(tmp_path, report):
    def on(name: str, dataset: str, value: float) -> ModelReport:
        results = {"retrieval": _result(name, dataset, {"map": value})}
        return replace(report, name=name, dataset=dataset, results=results)

    reports = [on("a", "one", 0.25), on("a", "two", 0.75), on("b", "one", 0.5)]
    write_report(tmp_path / "r.html", reports, {})
    page = _Page(tmp_path / "r.html")
    assert re.findall(r'<a href="#(\w+)">(\w+)</a>', page.text) == [("set0", "one"), ("set1", "two")]
    assert {a.get("id") for _, a in page.elements} >= {"set0", "set1"}
    assert page.table("mAP") == [
        ["model", "one", "two", "mean"],
        ["a", "0.250", "0.750", "0.500"],
        ["b", "0.500", "-", "-"],
    ]
    write_report(tmp_path / "r.html", reports[:1], {})
    assert "<nav" not in (tmp_path / "r.html").read_text()


def test_neighbours_are_marked_in_words_and_the_worst_queries_are_of_the_results(tmp_path, data, report):
    # the precision of `_report` falls with the row
    last = len(data.keys) - 1
    assert [found.query for _, found in report.worst] == [last, last - 1, last - 2, last - 3]
    write_report(tmp_path / "r.html", [report], {})
    page = _Page(tmp_path / "r.html")
    hits = [*report.neighbours, *(found for _, found in report.worst)]
    right = sum(data.entities[r] == data.entities[f.query] for f in hits for r in f.neighbours)
    marks = re.findall(
        r"<li( class=right)? title=\"[^\"]+, (right|wrong)\">.*?<b aria-hidden=\"true\">(&#\d+;)", page.text
    )
    assert len(marks) == sum(len(found.neighbours) for found in hits)
    assert marks.count((" class=right", "right", "&#10003;")) == right
    assert marks.count(("", "wrong", "&#10007;")) == len(marks) - right


def test_images_that_could_not_be_read_are_shown_nowhere(tmp_path, data):
    images = [b"broken" if row % 5 == 0 else image for row, image in enumerate(data.images)]
    broken = replace(data, images=images)
    embedded = embed_images(RawPixels(), images)
    report = _noted(_report(broken, embedded), "a", *embedded.left_out(broken.keys))
    write_report(tmp_path / "r.html", [report], {})
    page = _Page(tmp_path / "r.html")
    assert sorted(int(image["id"].removeprefix("t0-")) for image in page.all("image")) == [
        row for row in range(len(images)) if row % 5
    ]
    first = ", ".join(broken.keys[row] for row in range(0, 25, 5))
    count = len(embedded.failed)
    assert f"{count} images left out: no JPEG, PNG, GIF or WebP image ({first}, ...)" in page.text


def test_three_images_without_a_measure_make_a_page(tmp_path, data):
    few = EvaluationSet("few", data.keys[:3], list(data.images[:3]), ["x", "y", "z"])
    embedded = embed_images(RawPixels(), few.images)
    results = {"retrieval": _result("a", "few", {"map": None})}
    report = ModelReport.of(Evaluated(NamedModel("a", None, None), "few", few, embedded, results))
    write_report(tmp_path / "r.html", [report], {})
    text = _Page(tmp_path / "r.html").text
    assert "No map: 3 images are too few for a map; it needs 10." in text
    assert "mAP: not defined on this data" in text
    assert "Nearest neighbours" not in text and "Worst queries" not in text


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_six_models_of_1135_photographs_stay_below_six_megabytes(tmp_path):
    print("seed 0")
    draw = random.Random(0)
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    images = []
    for _ in range(1135):
        photograph, side = draw.choice(photographs), draw.randrange(64, 320)
        left, top = (draw.randrange(size - side) for size in photograph.size)
        images.append(encoded(photograph.crop((left, top, left + side, top + side)), "JPEG"))
    data = EvaluationSet(
        "set", [str(row) for row in range(1135)], images, [f"{row % 200}" for row in range(1135)]
    )
    report = _report(data, embed_images(RawPixels(), images))
    write_report(tmp_path / "r.html", [replace(report, name=f"model {n}") for n in range(6)], {})
    size = (tmp_path / "r.html").stat().st_size
    print(f"{size:,} bytes")
    assert size < 6e6


def test_a_file_that_is_no_curation_report_is_named(tmp_path, report):
    with pytest.raises(InputError, match=r"other has no list 'steps'"):
        write_report(tmp_path / "r.html", [report], {"other": {"rows": 3}})


def test_queries_beyond_the_third_are_folded(tmp_path, report):
    write_report(tmp_path / "r.html", [report], {})
    text = (tmp_path / "r.html").read_text()
    section = text.partition("Nearest neighbours</h3>")[2].partition("</section>")[0]
    shown, _, folded = section.partition("<details>")
    assert len(report.neighbours) > 3
    assert shown.count('class="query"') == 3
    assert folded.count('class="query"') == len(report.neighbours) - 3
    assert folded.startswith(f"<summary>{len(report.neighbours) - 3} more queries</summary>")
    write_report(tmp_path / "r.html", [replace(report, neighbours=report.neighbours[:3])], {})
    section = (tmp_path / "r.html").read_text().partition("Nearest neighbours</h3>")[2]
    assert "<details>" not in section.partition("</section>")[0]


def test_of_many_models_the_pairs_that_are_not_tested_are_told(tmp_path, report):
    def named(name: str) -> ModelReport:
        result = replace(report.results["retrieval"], model=name)
        return replace(report, name=name, results={"retrieval": result})

    for count, told in ((2, False), (6, False), (7, True)):
        write_report(tmp_path / "r.html", [named(f"m{n}") for n in range(count)], {})
        text = (tmp_path / "r.html").read_text()
        assert ("only the pairs with the best one by the measure are tested" in text) is told
