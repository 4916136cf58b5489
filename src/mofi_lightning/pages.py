"""HTML pages in one file each: they load and run nothing, and follow the reader's theme."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from mofi_lightning.types import InputError

# a browser that meets text that was not escaped after all neither runs nor loads it
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# characters without width that join or select emoji and letters; other ones can hide or reorder text
_HARMLESS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}


def require_html(file: Path) -> None:
    """Raise InputError if `file` is not named like a page: a slip of the pen shall overwrite no data."""
    if file.suffix.lower() not in (".html", ".htm") or file.is_dir():
        raise InputError(f"{file} is no name for a page; it must end with .html")


def write_page(file: Path, title: str, body: str, style: str = "") -> None:
    """Write a page, whole or not at all; its folder is made, an older page is replaced.

    Args:
        file: of the page.
        title: plain text.
        body: HTML of all below the title.
        style: CSS rules beside those of all pages.
    """
    css = files("mofi_lightning").joinpath("page.css").read_text() + style
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, file)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; the first column is that of names."""
    titles = "".join(f"<th scope=col>{escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def exposed(text: str, limit: int) -> str:
    r"""The start of `text` with everything written out that cannot be seen or changes what is around it.

    Control characters, marks that turn the direction of writing and line breaks become escapes. The result
    is one line of plain text for a terminal; a page escapes it once more.

    Example:
        >>> exposed("a\x1b[2Jb\u202ec", 100)
        'a\\x1b[2Jb\\u202ec'
    """
    start = "".join(_written(character) for character in text[:limit])
    return f"{start}… ({len(text):,} characters)" if len(text) > limit else start


def _written(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if hidden and character not in _HARMLESS:
        return character.encode("unicode_escape").decode()
    return character
