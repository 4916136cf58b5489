import base64
import io
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.images import encoded
from tests.test_pages import Page

from mofi_lightning.curation.report.counts import Step
from mofi_lightning.curation.report.data import (
    CandidateExample,
    EntityExample,
    NameExample,
    PairExample,
    ReportData,
    ScoreBins,
)
from mofi_lightning.curation.report.page import write_report


def png(height: int = 20, width: int = 30, colour: tuple[int, int, int] = (200, 0, 0)) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), "PNG")


def noise(side: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


EMPTY = ReportData("a curation", [], {}, {}, None, [], [], [], [], [], [])
FULL = ReportData(
    title="Curation of pairs",
    steps=[
        Step("all candidates", 980, 1500, 40, 0.8, 0.5, 0.9),
        Step("scores from 1.2", 980, 700, 30, 0.65, None, None),
    ],
    removed={"image size": 20, "text length": 0, "near duplicates": 1234},
    faults={"damaged JPEG image": 3},
    histogram=ScoreBins([-1, 0, 1, 2], [10, 200, 1290], [900, 590, 10], 1.25, 0.875),
    images_per_entity=[500, 50, 5, 1, 0],
    frequent=[EntityExample("Q142", "France", "country in Europe", 500, [png(), png()])],
    random=[EntityExample("Q230", "Georgia", "country in Asia", 5, [png()])],
    kept=[PairExample("a/1", png(), "flag of France", "France", 2.125, correct=True)],
    rejected=[PairExample("b/2", png(), "IMG 1", "Jordan", -0.5, "below the threshold", False)],
    ambiguous=[
        NameExample(
            "congo",
            "flag of Congo",
            png(),
            [
                CandidateExample("Q974", "DR Congo", "capital Kinshasa", 0.625, 1.75, True),
                CandidateExample("Q971", "Congo", "capital Brazzaville", 0.375, None, False),
            ],
        )
    ],
)


def written(folder: Path, data: ReportData) -> tuple[str, Page]:
    write_report(folder / "report.html", data)
    html = (folder / "report.html").read_text()
    return html, Page(html)


def rows(html: str) -> list[list[str]]:
    """The cells of all tables."""
    return [
        re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html) if "<td>" in row
    ]


def test_the_page_shows_the_counts_of_every_step(tmp_path):
    html, page = written(tmp_path, FULL)
    assert ["all candidates", "980", "1,500", "40", "0.800", "0.500", "0.900"] in rows(html)
    assert ["scores from 1.2", "980", "700", "30", "0.650", "-", "-"] in rows(html)
    assert "80.0%" in page.text and "65.0%" in page.text


def test_the_page_shows_what_was_left_out_most_first_and_no_filter_that_removed_nothing(tmp_path):
    html, _ = written(tmp_path, FULL)
    found = rows(html)
    assert found.index(["near duplicates", "1,234"]) < found.index(["image size", "20"])
    assert ["damaged JPEG image", "3"] in found
    assert "text length" not in html
    many = {f"fault {n:02}": 1 + (n < 20) for n in range(1000)}
    html, _ = written(tmp_path, replace(FULL, faults=many))
    assert ["fault 19", "2"] in rows(html) and "fault 20" not in html
    assert ["980 others", "980"] in rows(html)


def test_the_page_shows_scores_of_labels_and_decoys_with_the_threshold(tmp_path):
    html, page = written(tmp_path, FULL)
    for text in ("labels (1,500)", "wrong images (1,500)", "threshold 1.250", "estimated as 0.875"):
        assert text in page.text
    assert html.count('class="line s1"') == 2  # the curve and its sign in the legend
    alone = ScoreBins([-1, 0, 1, 2], [10, 200, 1290], [], None)
    html, page = written(tmp_path, replace(FULL, histogram=alone))
    assert (
        "labels (1,500)" in page.text and "threshold" not in html.partition("Scores")[2].partition("</sec")[0]
    )
    assert 'class="line s1"' not in html


def test_the_page_tells_how_long_the_tail_is(tmp_path):
    _, page = written(tmp_path, FULL)
    # 556 labels; the first 1 % of 4 entities is one
    assert "556 labels of 4 entities; the most frequent 1 has 89.9% of them" in page.text


def test_the_page_shows_entities_pairs_and_ambiguous_names(tmp_path):
    html, page = written(tmp_path, FULL)
    for text in (
        "France",
        "Q142, 500 images",
        "country in Europe",
        "France 2.125",
        "the image shows it",
        "Jordan -0.500",
        "below the threshold",
        "the image shows something else",
    ):
        assert text in page.text
    assert page.text.index("below the threshold") > page.text.index("France 2.125")
    assert ["DR Congo (Q974): capital Kinshasa", "0.625", "1.750", "\u2713"] in rows(html)
    assert ["Congo (Q971): capital Brazzaville", "0.375", "-", "-"] in rows(html)


def test_the_page_can_be_read_without_seeing_it(tmp_path):
    html, page = written(tmp_path, FULL)
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(alts) == 6 and all(alts) and "France, picture 2" in alts
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    charts = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len(charts) == 3 and all(a["role"] == "img" and a["aria-label"] for a in charts)
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "Steps",
        "Left out",
        "Scores",
        "Long tail",
        "Most frequent entities",
        "Random entities",
        "Kept and rejected",
        "Ambiguous names",
    ]


def test_the_page_is_one_file_without_scripts_that_loads_nothing(tmp_path):
    html, page = written(tmp_path, FULL)
    assert not re.search(r"https?:|url\(|@import", html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_of_nothing_can_be_written(tmp_path):
    html, page = written(tmp_path, EMPTY)
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Steps", "Left out"]
    assert "No filter removed a pair." in page.text and "All images can be decoded." in page.text


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</bdi></li></ul></section><h1>big</h1>",
    "\u202egnp.exe\x00\x1b[2J\u2066",
    "z" * 10**6,
)


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_texts_are_shown_as_text_wherever_they_stand(tmp_path, evil):
    image = png()
    candidate = CandidateExample(evil, evil, evil, 0.5, 0.5, True)
    data = ReportData(
        evil,
        [Step(evil, 1, 1, 1, 1.0)],
        {evil: 1},
        {evil: 1},
        FULL.histogram,
        [1],
        [EntityExample(evil, evil, evil, 1, [image])],
        [EntityExample(evil, evil, evil, 1, [image])],
        [PairExample(evil, image, evil, evil, 1.0, evil)],
        [PairExample(evil, image, evil, evil, 1.0, evil)],
        [NameExample(evil, evil, image, [candidate])],
    )
    html, page = written(tmp_path, data)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == 1 and tags.count("section") == 8 and "script" not in tags
    assert tags.count("img") == 5
    handlers = [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert not handlers
    assert not re.search("[\x00\x1b\u202e\u2066]", html)
    assert len(html) < 100_000
    if len(evil) < 40 and evil.isprintable():
        assert page.text.count(evil) >= 20


def test_images_that_cannot_be_decoded_are_replaced_by_the_reason(tmp_path):
    broken = noise(64)[:-500]
    header = b"IHDR" + (10**5).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4)
    huge += bytes(4) + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4)
    entity = EntityExample("Q1", "one", "", 3, [b"none", broken, huge, png()])
    html, page = written(tmp_path, replace(EMPTY, frequent=[entity]))
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert html.count('class="picture bad"') == 3
    assert "no JPEG, PNG, GIF or WebP image: 4 bytes" in page.text and "damaged PNG image" in page.text
    assert "too many pixels" in page.text


def test_pictures_become_small_and_the_page_stays_below_3_mb(tmp_path):
    large = noise(200)
    small = noise(96)  # nothing is lost to resizing: the largest a thumbnail can be
    entities = [EntityExample(f"Q{n}", f"entity {n}", "", 9, [large] + [small] * 9) for n in range(50)]
    pairs = [PairExample(f"{n}", small, "text", "one", 1.0) for n in range(50)]
    names = [NameExample(f"name {n}", "text", small, []) for n in range(50)]
    data = replace(EMPTY, frequent=entities, random=entities, kept=pairs, rejected=pairs, ambiguous=names)
    html, _ = written(tmp_path, data)
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in uris}
    assert sizes == {(96, 96)} and len(uris) == 2 * 12 * 4 + 2 * 12 + 12
    assert len(html) < 3_000_000


def test_the_same_data_give_the_same_bytes(tmp_path):
    assert written(tmp_path, FULL)[0] == written(tmp_path, FULL)[0]
