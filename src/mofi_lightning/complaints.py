"""What the parser and libraries complain of, in one line that names the thing, the value and the way out."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable

from mofi_lightning import entry_points


def near(word: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the name closest to `word`, whatever its case; nothing if none is close."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), list(lower), 1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def _no_class(name: str) -> str:
    # what was imported so far: whatever could have been written by its short name
    classes = {
        attribute
        for module in list(sys.modules)
        if module.startswith("mofi_lightning.")
        for attribute, value in list(vars(sys.modules[module]).items())
        if isinstance(value, type) and not attribute.startswith("_")
    }
    if name in entry_points.names():
        return f"there is no class {name!r}; the plugin of that name is 'mofi_lightning.plugins.{name}'"
    return f"there is no class {name!r}{near(name, classes)}; is it misspelt or not installed?"


def _no_module(name: str) -> str:
    return f"module {name!r} cannot be imported; install its package, or import its file with --module {name}"


def _no_attribute(module: str, name: str) -> str:
    found = sys.modules.get(module)
    names = getattr(found, "__all__", None) or dir(found)
    return f"module {module!r} has no {name!r}{near(name, names)}"


def _required(names: str) -> str:
    return f"{re.sub(r'(fit|validate)[.]', '', names)} must be set"


# the parser's complaints, most telling first; of several, the last is the innermost
_COMPLAINTS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"Option '([^']+)' is not accepted", "option {!r} is not accepted".format),
    (r"Expected a dot import path string: (\S+)", _no_class),
    (
        r"Multiple subclasses with name (\w+)\. "
        r"Give the full class path to avoid ambiguity: ([^\n]+?)\.?(?:\n|$)",
        "there are several classes {!r}; give one of {}".format,
    ),
    (r"No module named '([^']+)'", _no_module),
    (r"module '([^']+)' has no attribute '([^']+)'", _no_attribute),
    (r"((?:no plugin is called|plugin) '[^\n]+?)(?:\. Got value|\n|$)", "{}".format),
    (r"Expected '([^']+)' to be a subclass of <class '([^']+)'>", "{!r} is no {}".format),
    (r"the following arguments are required: ([\w., ]+?)(?:\. Got value|\n|$)", _required),
    (r"Expected a typing\.Literal\[([^\]]+)\]\. Got value: (\S+)", "expected one of {}, got {}".format),
    (r"Expected an? <class '([^']+)'>\. Got value: ([^\n]+)", "expected {}, got {}".format),
    (r"Expected an? <class '([^']+)'>(?s:.*)Given value: ([^\n]+)", "expected {}, got {}".format),
)


def one_line(message: str) -> str:
    """Condense a parser's message of many lines into where it is, what is wrong and what was given."""
    where = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    for pattern, wording in _COMPLAINTS:
        if found := re.findall(pattern, message):
            last = found[0] if isinstance(found[0], tuple) else (found[-1],)
            return f"{where}: {wording(*last)}" if where else wording(*last)
    return " ".join(message.split())
