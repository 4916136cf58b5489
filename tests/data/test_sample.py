import base64
import io
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.test_pages import Page

from mofi_lightning.data.sample import choose_rows, sample
from mofi_lightning.data.schema import Row
from mofi_lightning.data.vocabulary import EntityVocabulary
from mofi_lightning.data.writing import write_dataset
from mofi_lightning.types import InputError


def png(height: int, width: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_page_shows_random_rows_with_keys_texts_entities_and_scores(
    i2e, rows, vocabulary, tmp_path, capsys
):
    sample(i2e, tmp_path / "a.html", rows=12, seed=3)
    assert f"12 of {len(rows)} rows" in capsys.readouterr().out
    page = Page((tmp_path / "a.html").read_text())
    shown = [row for row in rows if f">{row.key}<" in (tmp_path / "a.html").read_text()]
    assert len(shown) == 12
    for row in shown:
        assert row.text in page.text
        for entity, score in zip(row.entities, row.scores, strict=True):
            assert f"{vocabulary.names[entity]} {score:.3f}" in page.text
    assert [tag for tag, _ in page.tags].count("img") == 12
    sample(i2e, tmp_path / "b.html", rows=12, seed=3)
    sample(i2e, tmp_path / "c.html", rows=12, seed=4)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_bytes() != (tmp_path / "c.html").read_bytes()


def test_every_row_is_as_likely_and_comes_once():
    sizes = np.array([3, 0, 5, 2])
    seen = np.zeros(10)
    for seed in range(2000):
        chosen = choose_rows(sizes, 4, seed)
        assert chosen == sorted(set(chosen)) and len(chosen) == 4
        seen[chosen] += 1
    assert abs(seen / 2000 - 0.4).max() < 0.05
    assert choose_rows(sizes, 99, 1) == list(range(10))


def test_rows_can_come_from_a_few_chunks():
    sizes = np.full(100, 10)
    for seed in range(20):
        chosen = choose_rows(sizes, 30, seed, chunks=4)
        assert len(set(chosen)) == 30 and len({row // 10 for row in chosen}) <= 4
    assert len(choose_rows(sizes, 48, 1, chunks=4)) == 40


def test_hostile_texts_are_shown_as_text(tmp_path):
    evil = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "]]></bdi></li></ul><h1>big</h1>",
        "\u202egnp.exe\x00\x1b[2J\u2066",
        "&lt;b&gt;",
    ]
    entities = EntityVocabulary.from_columns(list("abcde"), evil, [""] * 5, [1] * 5)
    image = png(8, 8)
    rows = [Row(f"{n} {text}", image, text, (n,), (0.5,)) for n, text in enumerate(evil)]
    write_dataset([*rows, Row("long", image, "z" * 10**6)], tmp_path / "d", entities)
    sample(tmp_path / "d", tmp_path / "s.html")
    html = (tmp_path / "s.html").read_text()
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 6 and tags.count("h1") == 1 and "script" not in tags
    assert all(set(attributes) <= {"src", "alt"} for tag, attributes in page.tags if tag == "img")
    for text in (*evil[:3], evil[4]):
        assert page.text.count(text) == 3  # in the key, as text and as name
    assert not re.search("[\x00\x1b\u202e\u2066]", html)
    assert r"\u202egnp.exe\x00\x1b[2J\u2066" in page.text
    assert "(1,000,000 characters)" in page.text and len(html) < 50_000


def test_rows_that_cannot_be_shown_say_why(i2e, rows, tmp_path, vocabulary):
    dataset = shutil.copytree(i2e, tmp_path / "d")
    (dataset / "shards" / "chunk-000001.bin").unlink()
    chunk = dataset / "shards" / "chunk-000000.bin"
    data = bytearray(chunk.read_bytes())
    data[data.index(rows[5].image) + 99] ^= 1
    chunk.write_bytes(data)
    sample(dataset, tmp_path / "s.html", rows=10**6)
    text = Page((tmp_path / "s.html").read_text()).text
    assert "chunk-000001.bin is missing" in text
    assert f"(key '{rows[5].key}') does not match its checksum" in text
    bad = [Row("bad", b"none", "its text"), rows[1]._replace(entities=(10**6,), scores=(1.0,))]
    write_dataset(bad[:1], tmp_path / "bad")
    sample(tmp_path / "bad", tmp_path / "s.html")
    text = Page((tmp_path / "s.html").read_text()).text
    assert "no JPEG, PNG, GIF or WebP image: 4 bytes" in text and "its text" in text


def test_a_class_id_beyond_the_vocabulary_is_shown_as_such(i2e, vocabulary, tmp_path):
    dataset = shutil.copytree(i2e, tmp_path / "d")
    EntityVocabulary.from_columns(["a"], ["only"], [""], [1]).save(dataset)
    sample(dataset, tmp_path / "s.html", rows=10**6)
    text = Page((tmp_path / "s.html").read_text()).text
    assert f"class id {len(vocabulary) - 1} is not in the vocabulary" in text


def test_pictures_become_small_and_keep_their_shape(tmp_path):
    sizes = [(600, 900), (4, 3), (10, 3000)]
    write_dataset((Row(str(n), png(*size), "") for n, size in enumerate(sizes)), tmp_path / "d")
    sample(tmp_path / "d", tmp_path / "s.html")
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', (tmp_path / "s.html").read_text())
    shown = [Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in uris]
    assert shown == [(256, 171), (3, 4), (256, 1)]
    assert "900 x 600 pixels" in (tmp_path / "s.html").read_text()


def test_pairs_without_entities_have_a_page_too(plain, tmp_path):
    sample(plain, tmp_path / "s.html", rows=5)
    html = (tmp_path / "s.html").read_text()
    assert html.count("<li>") == 5 and 'class="labels"' not in html


def test_bad_numbers_and_outputs_are_refused(plain, tmp_path):
    with pytest.raises(InputError, match="1 row or more, not 0"):
        sample(plain, tmp_path / "s.html", rows=0)
    with pytest.raises(InputError, match="seed"):
        sample(plain, tmp_path / "s.html", seed=-1)
    with pytest.raises(InputError, match=r"must end with \.html"):
        sample(plain, plain / "dataset.json")
    assert os.listdir(tmp_path) == []
