"""Progress bars: on standard error, and only where a person looks at it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def track(items: Iterable[_T], title: str, total: int | None) -> Iterator[_T]:
    """The `items`, with a bar that disappears at the end; none where standard error is no terminal.

    Args:
        items: read once.
        title: of the bar.
        total: number of items; None if it is unknown.
    """
    from rich.console import Console
    from rich.progress import track as bar

    hidden = not sys.stderr.isatty()
    yield from bar(items, title, total, console=Console(stderr=True), transient=True, disable=hidden)
