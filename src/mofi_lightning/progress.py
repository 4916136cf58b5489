"""Progress bars: on standard error, and only where a person looks at it; lines where a log is kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

# seconds between the lines of a log
_EVERY = 60.0


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


def track_rows(done: Iterable[int], title: str, total: int) -> Iterator[int]:
    """The `done`, with rate and time left: a bar, or a line a minute where standard error is no terminal.

    Args:
        done: numbers of rows, each as soon as the work on them is finished.
        title: of the work.
        total: number of rows of it all.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield from _log(done, title, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows, {task.fields[rate]:,.0f} a second"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        start, finished = time.monotonic(), 0
        task = progress.add_task(title, total=total, rate=0)
        for rows in done:
            finished += rows
            rate = finished / max(1e-9, time.monotonic() - start)
            progress.update(task, advance=rows, rate=rate)
            yield rows


def _log(done: Iterable[int], title: str, total: int) -> Iterator[int]:
    start = said = time.monotonic()
    finished = 0
    for rows in done:
        finished += rows
        now = time.monotonic()
        if now - said >= _EVERY:
            said = now
            rate = finished / (now - start)
            left = (total - finished) / max(rate, 1e-9)
            clock = f"{left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f}"
            line = f"{title}: {finished:,} of {total:,} rows, {rate:,.0f} a second, {clock} left"
            print(line, file=sys.stderr, flush=True)
        yield rows
