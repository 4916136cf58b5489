"""Long lists in one line."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMED = 5


def listed(names: Iterable[object]) -> str:
    """The first five of `names`, with an ellipsis where there are more.

    Example:
        >>> listed("abcdefg")
        'a, b, c, d, e, ...'
    """
    shown = [str(name) for name in names]
    return ", ".join([*shown[:_MOST_NAMED], *(["..."] if len(shown) > _MOST_NAMED else [])])
