import re
from html.parser import HTMLParser

import pytest

from mofi_lightning.pages import exposed, require_html, table, write_page
from mofi_lightning.types import InputError


class Page(HTMLParser):
    """Tags of a page with their attributes, and its text; fails on a closing tag without its opening one."""

    void = frozenset({"meta", "img", "path", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_is_one_file_that_loads_nothing_and_follows_the_theme(tmp_path):
    file = tmp_path / "new" / "page.html"
    write_page(file, "a <b> title", table(["<i>"], [["<td>"], ["x"]]))
    html = file.read_text()
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i", "script", "link", "iframe"})
    assert "a <b> title" in page.text
    assert not re.search(r"https?:|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html and "default-src 'none'" in html
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_only_pages_are_replaced(tmp_path):
    require_html(tmp_path / "a.HTML")
    for name in ("data.parquet", "page", "html"):
        with pytest.raises(InputError, match=r"must end with \.html"):
            require_html(tmp_path / name)


def test_what_hides_or_reorders_text_is_written_out():
    assert exposed("a\tb\nc\x00d\x1b[2J", 99) == r"a\tb\nc\x00d\x1b[2J"
    assert exposed("x\u202egpj.exe\u2066\u200b\ufeff\u2028", 99) == r"x\u202egpj.exe\u2066\u200b\ufeff\u2028"
    assert exposed("caf\u00e9 \u05e9\u05dc\u05d5\u05dd \u4e2d \U0001f469\u200d\U0001f680", 99) == (
        "caf\u00e9 \u05e9\u05dc\u05d5\u05dd \u4e2d \U0001f469\u200d\U0001f680"
    )
    assert exposed("y" * 10**6, 5) == "yyyyy… (1,000,000 characters)"
