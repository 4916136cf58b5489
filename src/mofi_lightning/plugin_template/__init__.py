"""`mofi new-plugin`: the complete package of a new objective, ready to be changed."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib import resources
from pathlib import Path

from mofi_lightning import entry_points
from mofi_lightning.types import InputError

# what is written -> what it is made of; names of the plugin stand in double braces in both
_FILES = {
    "LICENSE": "LICENSE.tmpl",
    "README.md": "README.md.tmpl",
    "config.yaml": "config.yaml.tmpl",
    "pyproject.toml": "pyproject.toml.tmpl",
    "src/{{package}}/__init__.py": "__init__.py.tmpl",
    "src/{{package}}/objective.py": "objective.py.tmpl",
    "src/{{package}}/py.typed": "py.typed.tmpl",
    "tests/test_{{identifier}}.py": "test.py.tmpl",
}

# what the module imports: a class of that name would hide it
_IMPORTED = {"Batch", "Embeddings", "InputError", "Objective", "ObjectiveOutput", "ObjectiveSpec", "Tensor"}


def new_plugin(name: str, output: str | None = None) -> None:
    """Write a package with a new objective: code, test, a configuration that trains, README and licence.

    Args:
        name: of the plugin, lower-case words joined by '-' or '_': 'triplet', 'hard-negatives'.
        output: folder to write; ./NAME if left out.

    Raises:
        InputError: the name cannot be used or is taken, or the folder exists.
    """
    folder = Path(output or name)
    _check(name, folder)
    write_package(name, folder)
    at = str(folder) if folder.is_absolute() else f"./{folder.as_posix()}"
    print(
        f"wrote {at}, with the objective in src/{_names(name)['package']}/objective.py; use it as it is:\n\n"
        f"  pip install -e {at}\n"
        f"  mofi fit -c {folder.as_posix()}/config.yaml\n"
        f"  pytest {folder.as_posix()}"
    )


def write_package(name: str, folder: Path) -> None:
    """Write the files of the plugin `name` below `folder`."""
    names = _names(name)
    for target, template in _FILES.items():
        path = folder / _fill(target, names)
        path.parent.mkdir(parents=True, exist_ok=True)
        source = resources.files(__package__) / "files" / template
        path.write_text(_fill(source.read_text(encoding="utf-8"), names), encoding="utf-8")


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
