"""Plugins: classes that packages declare under the entry-point group `mofi_lightning.plugins`.

An entry point `name = "package:Class"` only causes the import; what kind of plugin it is follows from the
base class. Our own sources and backbone libraries are declared the same way.
"""

from __future__ import annotations

import difflib
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata

from mofi_lightning.types import InputError

GROUP = "mofi_lightning.plugins"

# kind -> base class; imported only when a plugin is classified
_BASES = {
    "objective": "mofi_lightning.objectives.base:Objective",
    "source": "mofi_lightning.sources.base:Source",
    "knowledge base reader": "mofi_lightning.curation.knowledge_bases.base:KnowledgeBaseReader",
    "mention detector": "mofi_lightning.curation.texts.mentions:MentionDetector",
    "filter": "mofi_lightning.curation.labels.filters:Filter",
    "backbone library": "mofi_lightning.encoders.base:BackboneLibrary",
    "image encoder": "mofi_lightning.encoders.base:ImageEncoder",
    "text encoder": "mofi_lightning.encoders.base:TextEncoder",
    "evaluation data": "mofi_lightning.evaluation.base:EvaluationData",
    "evaluator": "mofi_lightning.evaluation.base:Evaluator",
}


@dataclass(frozen=True)
class Plugin:
    """One declared plugin.

    Attributes:
        name: the entry point's name.
        target: `package:Class`.
        package: the distribution that declares it.
        version: of that distribution.
        kind: what its base class makes it; empty if it is broken.
        error: why it cannot be used; empty if it can.
    """

    name: str
    target: str
    package: str
    version: str
    kind: str = ""
    error: str = ""


@cache
def _declared() -> dict[str, list[metadata.EntryPoint]]:
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=GROUP):
        if all(entry.value != other.value for other in found.get(entry.name, [])):
            found.setdefault(entry.name, []).append(entry)
    return found


def names() -> list[str]:
    """Names of all declared plugins, sorted."""
    return sorted(_declared())


def load(name: str) -> type:
    """Import the plugin called `name`.

    Raises:
        InputError: no plugin has that name, two packages claim it, or its import fails.
    """
    entries = _declared().get(name, [])
    if not entries:
        near = difflib.get_close_matches(name, names(), 3)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else f"installed are {', '.join(names())}"
        )
        raise InputError(f"no plugin is called {name!r}; {hint}")
    if len(entries) > 1:
        claims = ", ".join(f"{e.dist.name if e.dist else '?'} ({e.value})" for e in entries)
        raise InputError(f"plugin name {name!r} is claimed by {claims}; uninstall all but one")
    try:
        plugin = entries[0].load()
    except Exception as error:
        raise InputError(
            f"plugin {name!r} ({entries[0].value}) cannot be imported: {_one_line(error)}"
        ) from error
    if not isinstance(plugin, type):
        raise InputError(f"plugin {name!r} ({entries[0].value}) is not a class")
    return plugin


def load_kind(name: str, kind: str) -> type:
    """Import the plugin called `name` and check that it is of `kind` (for instance 'source')."""
    plugin = load(name)
    if not issubclass(plugin, _base(kind)):
        raise InputError(f"plugin {name!r} is no {kind} but a {_kind(plugin) or plugin.__name__}")
    return plugin


def load_all(kind: str) -> dict[str, type]:
    """Every usable plugin of `kind` by name; broken ones are left out (see `describe`)."""
    return {p.name: load(p.name) for p in describe() if p.kind == kind}


def describe() -> list[Plugin]:
    """All declared plugins with their kind, or the error that makes them unusable."""
    records = []
    for name in names():
        entry = _declared()[name][0]
        dist = entry.dist
        record = dict(
            name=name,
            target=entry.value,
            package=dist.name if dist else "?",
            version=dist.version if dist else "?",
        )
        try:
            kind = _kind(load(name))
            error = "" if kind else "derives from none of the plugin base classes"
        except InputError as problem:
            kind, error = "", str(problem)
        records.append(Plugin(**record, kind=kind, error=error))
    return records


def _base(kind: str) -> type:
    module, name = _BASES[kind].split(":")
    base: type = getattr(import_module(module), name)
    return base


def _kind(plugin: type) -> str:
    return next((kind for kind in _BASES if issubclass(plugin, _base(kind))), "")


def _one_line(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)).split())
