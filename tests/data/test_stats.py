import io
import os
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from tests.test_pages import Page

from mofi_lightning.data.schema import Row
from mofi_lightning.data.stats import stats
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.types import InputError

SHARES = (0, 0.05, 0.5, 0.95, 1)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def jpeg(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stats_counts_rows_entities_sizes_and_lengths(i2e, rows, vocabulary, capsys, num_workers):
    stats(i2e, num_workers=num_workers)
    out = printed(capsys)
    labelled = sum(bool(row.entities) for row in rows) / len(rows)
    images = Counter(entity for row in rows for entity in row.entities)
    without = len(vocabulary) - len(images)
    assert f"{len(rows)} rows with entity, image, text" in out
    words = f", {without} of them without image" if without else ""
    assert f"{len(vocabulary)} entities{words}; {labelled:.1%} of the rows" in out
    assert "image width 64 64 64 64 64" in out
    for name, values in (
        ("image bytes", [len(row.image) for row in rows]),
        ("text characters", [len(row.text) for row in rows]),
        ("entities a row", [len(row.entities) for row in rows]),
    ):
        assert f"{name} " + " ".join(f"{value:,.0f}" for value in np.quantile(values, SHARES)) in out
    ((_, count),) = images.most_common(1)
    best = [vocabulary.names[entity] for entity in sorted(images) if images[entity] == count]
    assert f"most frequent: {best[0]} ({count})" in out


def test_sizes_are_height_and_width_in_their_places(tmp_path, capsys):
    write_dataset([Row("a", jpeg(20, 70), "")], tmp_path / "d")
    stats(tmp_path / "d")
    out = printed(capsys)
    assert "image width 70 70 70 70 70" in out and "image height 20 20 20 20 20" in out
    assert "entities" not in out.replace("entities a row", "")


def test_pixels_are_not_decoded(tmp_path, capsys):
    image = jpeg(480, 640)
    cut = image[: image.index(b"\xff\xda") + 20]  # what follows the header is gone
    write_dataset([Row("a", cut, "")], tmp_path / "d")
    stats(tmp_path / "d")
    out = printed(capsys)
    assert "image width 640" in out and "wrong" not in out


def test_what_cannot_be_read_is_counted_and_the_rest_is_described(i2e, rows, tmp_path, capsys):
    dataset = shutil.copytree(i2e, tmp_path / "d")
    os.truncate(dataset / "shards" / "chunk-000001.bin", 1000)
    chunk = dataset / "shards" / "chunk-000000.bin"
    data = bytearray(chunk.read_bytes())
    data[data.index(rows[5].image) + 99] ^= 1
    chunk.write_bytes(data)
    stats(dataset)
    out = printed(capsys)
    assert "missing or truncated chunk: " in out and "damaged row: 1" in out and "`mofi data verify`" in out
    for file in (dataset / "shards").glob("*.bin"):
        file.unlink()
    with pytest.raises(InputError, match=f"none of the {len(rows)} rows of .* can be read"):
        stats(dataset)


def test_the_long_tail_is_printed_and_drawn_with_hostile_names_in_their_place(tmp_path, capsys):
    names = ["<script>alert(1)</script>", "[red]x\x1b[2J", 'q"><img src=x onerror=y>', "none"]
    entities = EntityVocabulary.from_columns(list("abcd"), names, [""] * 4, [1] * 4)
    image = jpeg(8, 8)
    counts = {0: 9, 1: 2, 2: 1}
    rows = [Row(f"{e}-{n}", image, "", (e,), (1.0,)) for e, count in counts.items() for n in range(count)]
    write_dataset(rows, tmp_path / "d", entities)
    stats(tmp_path / "d", picture=tmp_path / "out" / "tail.html")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"most frequent: <script>alert(1)</script> (9), [red]x\x1b[2J (2)" in out
    assert "none            1" in out and "8-15            1          75.0%" in out
    html = (tmp_path / "out" / "tail.html").read_text()
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert all(name in page.text for name in (names[0], names[2]))
    assert "\x1b" not in html
    assert html.count('<figure class="chart">') == 5
    assert 'd="M' in html and "nan" not in html


def test_a_data_set_without_entities_has_a_picture_without_tail(plain, tmp_path):
    stats(plain, picture=tmp_path / "p.html")
    html = (tmp_path / "p.html").read_text()
    assert html.count('<figure class="chart">') == 4
    assert "long tail" not in html


def test_a_picture_must_be_a_page(plain, tmp_path):
    with pytest.raises(InputError, match=r"must end with \.html"):
        stats(plain, picture=plain / "dataset.json")
