"""`mofi new-plugin`: the complete package of a new objective or source, ready to be changed."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib import resources
from pathlib import Path
from typing import Literal

from mofi_lightning import entry_points
from mofi_lightning.types import InputError

# kind -> what is written, and what it is made of; names of the plugin stand in double braces in both
_COMMON = {
    "LICENSE": "common/LICENSE.tmpl",
    "src/{{package}}/py.typed": "common/py.typed.tmpl",
}
_FILES = {
    "objective": {
        **_COMMON,
        "README.md": "objective/README.md.tmpl",
        "config.yaml": "objective/config.yaml.tmpl",
        "pyproject.toml": "objective/pyproject.toml.tmpl",
        "src/{{package}}/__init__.py": "objective/__init__.py.tmpl",
        "src/{{package}}/objective.py": "objective/objective.py.tmpl",
        "tests/test_{{identifier}}.py": "objective/test.py.tmpl",
    },
    "source": {
        **_COMMON,
        "README.md": "source/README.md.tmpl",
        "pyproject.toml": "source/pyproject.toml.tmpl",
        "src/{{package}}/__init__.py": "source/__init__.py.tmpl",
        "src/{{package}}/source.py": "source/source.py.tmpl",
        "tests/test_{{identifier}}.py": "source/test.py.tmpl",
    },
}
# kind -> how the plugin is used as it is
_USE = {
    "objective": "mofi fit -c {folder}/config.yaml",
    "source": "mofi pairs {identifier} --help",
}
# what the modules import: a class of that name would hide it
_IMPORTED = {
    "Batch",
    "Embeddings",
    "InputError",
    "Iterator",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveSpec",
    "Pair",
    "Path",
    "Source",
    "Tensor",
}


def new_plugin(
    name: str, output: str | None = None, kind: Literal["objective", "source"] = "objective"
) -> None:
    """Write a package with a new plugin that works as it is: code, test, README and licence.

    Args:
        name: of the plugin, lower-case words joined by '-' or '_': 'triplet', 'hard-negatives'.
        output: folder to write; ./NAME if left out.
        kind: an objective, with a configuration that trains, or a source of pairs.

    Raises:
        InputError: the name cannot be used or is taken, or the folder exists.
    """
    folder = Path(output or name)
    _check(name, folder)
    write_package(name, folder, kind)
    names = _names(name)
    at = str(folder) if folder.is_absolute() else f"./{folder.as_posix()}"
    print(
        f"wrote {at}, with the {kind} in src/{names['package']}/{kind}.py; use it as it is:\n\n"
        f"  pip install -e {at}\n"
        f"  {_USE[kind].format(folder=folder.as_posix(), identifier=names['identifier'])}\n"
        f"  pytest {folder.as_posix()}"
    )


def write_package(name: str, folder: Path, kind: str = "objective") -> None:
    """Write the files of the plugin `name`, an objective or a source, below `folder`."""
    names = _names(name)
    for target, template in _FILES[kind].items():
        path = folder / _fill(target, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = resources.files(__package__).joinpath("files", template).read_text(encoding="utf-8")
        path.write_text(_fill(text, names), encoding="utf-8")


def _check(name: str, folder: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise InputError(
            f"plugin name {name!r} is not made of lower-case words joined by '-' or '_'; "
            "write it like 'hard-negatives'"
        )
    names = _names(name)
    if keyword.iskeyword(names["identifier"]) or names["class"] in _IMPORTED:
        raise InputError(f"plugin name {name!r} already means something in Python or here; choose another")
    if names["identifier"] in entry_points.names():
        raise InputError(f"plugin name {name!r} is taken (`mofi plugins` lists all); choose another")
    if importlib.util.find_spec(names["package"]):
        raise InputError(f"plugin name {name!r}: a module {names['package']} is installed; choose another")
    if folder.exists():
        raise InputError(f"{str(folder)!r} exists; give another --output, or another name")


def _names(name: str) -> dict[str, str]:
    words = re.split("[-_]", name)
    return {
        "identifier": "_".join(words),
        "package": "_".join(["mofi", *words]),
        "distribution": "-".join(["mofi", *words]),
        "class": "".join(word.capitalize() for word in words),
    }


def _fill(text: str, names: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: names[match[1]], text)
