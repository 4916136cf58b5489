"""Shell patterns of parameter names, as users write them in a configuration."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from mofi_lightning.types import InputError


def matching(names: Iterable[str], pattern: str, setting: str) -> list[str]:
    """Those of `names` that match `pattern`; `*` matches dots too.

    Args:
        names: of parameters.
        pattern: such as `model.image.*`.
        setting: what the pattern belongs to, for the error.

    Raises:
        InputError: it matches none; the nearest part of a name is suggested.
    """
    names = list(names)
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        prefixes = {name[:dot] for name in names for dot, c in enumerate(name) if c == "."}
        near = difflib.get_close_matches(pattern.rstrip(".*"), sorted(prefixes), 1, cutoff=0.3)
        hint = f"did you mean {near[0] + '.*'!r}?" if near else f"one is {next(iter(names), '')!r}"
        raise InputError(f"{setting} pattern {pattern!r} matches no parameter; {hint}")
    return found
