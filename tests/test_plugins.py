"""`mofi plugins`: what is installed, what kind it is, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mofi_lightning import cli, entry_points


@pytest.fixture
def declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package of given entry points, as pip would, for the time of a test."""

    def declare(package: str, entries: str) -> None:
        info = tmp_path / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[mofi_lightning.plugins]\n{entries}\n")
        entry_points._declared.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield declare
    entry_points._declared.cache_clear()


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, list[str]]:
    """The cells of each line, by the plugin's name."""
    cli.main([*words, "plugins"])
    header, *lines = capsys.readouterr().out.splitlines()
    starts = [header.index(name) for name in header.split()]
    assert header.split() == ["name", "kind", "class", "package", "version", "state", "error"]
    ends = [*starts[1:], None]
    rows = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_each_plugin_is_listed_with_kind_class_package_version_and_state(capsys):
    plugins = listed(capsys)
    timm = ["backbone library", "mofi_lightning.encoders.image:TimmLibrary", "mofi-lightning"]
    assert plugins["timm"][:3] == timm and plugins["timm"][4:] == ["ok", ""]
    assert plugins["template"] == ["objective", "mofi_template:Template", "mofi-template", "0.1.0", "ok", ""]


def test_broken_plugins_are_listed_with_what_is_wrong(declare, capsys):
    declare("one", "gone = a_module_that_is_not_there:Thing\npath = pathlib:Path\ntwice = pathlib:Path")
    declare("two", "twice = pathlib:PurePath")
    plugins = listed(capsys)
    assert plugins["gone"][:5] == ["", "a_module_that_is_not_there:Thing", "one", "1.2", "broken"]
    assert "No module named 'a_module_that_is_not_there'" in plugins["gone"][5]
    assert plugins["path"][4:] == ["broken", "derives from none of the plugin base classes"]
    assert "is claimed by" in plugins["twice"][5] and "uninstall all but one" in plugins["twice"][5]
    assert plugins["timm"][4] == "ok"


def test_a_module_that_is_not_installed_can_be_imported_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").write_text("print('imported')\n")
    cli.main(["--module", "my_losses", "plugins"])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "imported" and second.startswith("name ")
