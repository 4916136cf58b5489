"""The command line: quick, complete, and clear about bad input."""

import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from mofi_lightning import cli, entry_points
from mofi_lightning.types import InputError


def mofi(*words: str) -> tuple[int, str]:
    """Exit code and standard error of `mofi` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "mofi_lightning", *words], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stderr


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which `mofi` refuses `words`."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(list(words))
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mofi: error: "), lines
    return lines[0]


def test_help_is_quick_and_lists_every_verb(capsys):
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "mofi_lightning", "--help"], capture_output=True, text=True)
    assert time.perf_counter() - start < 3
    for verb, described in cli.VERBS.items():
        assert verb in done.stdout and described.summary in done.stdout


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_the_short_help_of_training_imports_neither_torch_nor_lightning(verb):
    code = (
        "import sys\nfrom mofi_lightning import cli\n"
        f"cli.main([{verb!r}, '--help'])\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith(f"usage: mofi {verb} ") and "mofi checkpoint inspect" in done.stdout


def test_every_verb_names_a_documented_function():
    for verb in cli.VERBS.values():
        module, _, attribute = verb.target.partition(":")
        assert getattr(import_module(module), attribute).__doc__


PLUGIN_OF = {"pairs": "folder", "data build": "folder", "kb build": "wikidata"}


@pytest.mark.parametrize(
    "verb",
    [
        f"{verb} {PLUGIN_OF[verb]}" if verb in PLUGIN_OF else verb
        for verb in cli.VERBS
        if verb not in {"fit", "validate"}
    ],
)
def test_the_help_of_a_verb_imports_neither_torch_nor_lightning(verb):
    code = (
        "import sys\nfrom mofi_lightning import cli\n"
        f"try: cli.main({[*verb.split(), '--help']})\nexcept SystemExit as e: assert not e.code\n"
        "loaded = {'torch', 'lightning', 'transformers', 'timm', 'litdata'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, mofi_lightning; assert not {'torch', 'numpy', 'jsonargparse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    import mofi_lightning

    for name in mofi_lightning.__all__:
        assert getattr(mofi_lightning, name) is not None


def test_unknown_verbs_and_options_end_with_one_line(capsys, tmp_path):
    assert "did you mean 'curate'" in complaint(capsys, "curat")
    assert "unrecognized arguments: --nope 1" in complaint(capsys, "curate", "a", "b", "--nope", "1")
    build = ("data", "build", "parquet", "--path", str(tmp_path / "no.parquet"))
    assert "output" in complaint(capsys, *build)
    assert "no.parquet" in complaint(capsys, *build, "--output", str(tmp_path / "out"))
    assert "keep" in complaint(capsys, "curate", "a", "b", "--keep", "much")
    assert (
        "'data bild' is no verb of mofi; `mofi --help` lists them (did you mean 'data build'?)"
        in complaint(capsys, "data", "bild", "a", "b")
    )


def test_a_source_that_is_none_is_answered_with_the_sources(capsys):
    line = complaint(capsys, "pairs", "folderr", "--output", "x")
    assert "no source is called 'folderr' (did you mean 'folder'?)" in line
    assert line.partition("there are ")[2].split(", ") == list(entry_points.load_all("source"))
    assert "timm" not in line
    assert "is no source but a backbone library" in complaint(capsys, "pairs", "timm", "--output", "x")


def test_complaints_name_the_help_of_the_verb(capsys):
    assert "(`mofi evaluate --help` lists" in complaint(capsys, "evaluate", "a.parquet", "out", "--nope", "1")
    assert "(`mofi data build folder --help` lists" in complaint(capsys, "data", "build", "folder", "--nope")
    assert "(`mofi pairs folder --help` lists" in complaint(capsys, "pairs", "folder", "--nope", "1")


def test_options_are_not_abbreviated(capsys):
    assert "unrecognized arguments: --vocab 9" in complaint(
        capsys, "data", "tokenizer", "a", "b", "--vocab", "9"
    )


def test_backbones_lists_all_and_helps_a_pattern_that_matches_none(capsys):
    cli.main(["backbones", "mofi/*"])
    some = capsys.readouterr().out.splitlines()
    cli.main(["backbones"])
    assert set(some) < set(capsys.readouterr().out.splitlines())
    assert "no backbone matches 'zzz*'; `mofi backbones` lists all" in complaint(capsys, "backbones", "zzz*")
    assert "no backbone matches 'patch16'; '*patch16*' does" in complaint(capsys, "backbones", "patch16")
    assert "(did you mean 'mofi/tiny'?)" in complaint(capsys, "backbones", "mofi/tinny")


def test_a_message_of_many_lines_is_condensed():
    union = (
        'Parser key "keep":\n  Does not validate against any of the Union subtypes\n'
        "  Errors:\n    - Expected a <class 'float'>\n    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'str'>\n  Given value: x"
    )
    assert cli.one_line(union) == "keep: expected float, got x"
    nested = (
        'Parser key "data":\n  Errors:\n    - Problem with given class_path X:\n        Parser key "rows":\n'
        "          Expected a <class 'int'>. Got value: many\n    - Expected a <class 'NoneType'>"
    )
    assert cli.one_line(nested) == "data.rows: expected int, got many"


def test_list_options_take_several_words():
    def verb(data: str, models: list[str], k: int = 1) -> None:
        """Measure."""

    words = ["d", "--models", "pixels", "a=b", "--k", "2"]
    assert cli._join_lists(verb, words) == ["d", "--models", '["pixels", "a=b"]', "--k", "2"]
    assert cli._join_lists(verb, ["d", "--models", "[x, y]"]) == ["d", "--models", "[x, y]"]


def test_plugins_are_listed_by_kind_and_built_in_ones_are_usable():
    plugins = {plugin.name: plugin for plugin in entry_points.describe()}
    assert {
        "parquet": "source",
        "folder": "source",
        "timm": "backbone library",
        "mofi": "backbone library",
    }.items() <= {name: plugin.kind for name, plugin in plugins.items()}.items()
    assert not [plugin for plugin in plugins.values() if plugin.error]


def test_a_broken_plugin_is_listed_with_its_error_and_fatal_only_when_named(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("import a_module_that_is_not_there\n")
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mofi_lightning.plugins]\nbroken = broken_plugin:Thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry_points._declared.cache_clear()
    try:
        (record,) = [plugin for plugin in entry_points.describe() if plugin.name == "broken"]
        assert "a_module_that_is_not_there" in record.error
        assert (record.package, record.version, record.kind) == ("broken-plugin", "1.0", "")
        with pytest.raises(InputError, match=r"plugin 'broken'.*a_module_that_is_not_there"):
            entry_points.load("broken")
        assert entry_points.load("timm").__name__ == "TimmLibrary"
    finally:
        entry_points._declared.cache_clear()


def test_plugins_are_attributes_of_the_plugins_module():
    from mofi_lightning import plugins
    from mofi_lightning.encoders.image import TimmLibrary

    assert plugins.timm is TimmLibrary
    assert "timm" in dir(plugins)
    with pytest.raises(AttributeError, match="did you mean 'timm'"):
        plugins.tim  # noqa: B018


def test_outputs_in_object_storage_are_refused_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    line = complaint(capsys, "data", "build", "folder", "--path", "images", "--output", "s3://bucket/x")
    assert "--output s3://bucket/x: this must be a path on this machine" in line
    assert "s3://bucket" in complaint(capsys, "pairs", "folder", "--path", "s3://bucket/x", "--output", "out")
    synthetic = Path(__file__).parents[1] / "configs" / "fit" / "synthetic.yaml"
    fit = ("fit", "--config", str(synthetic), "--trainer.default_root_dir", "s3://bucket/run")
    assert "s3://bucket/run must be a folder" in complaint(capsys, *fit)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("augmentation.flip", "2", "augmentation flip must be in 0..1, not 2.0"),
        ("cache.gigabytes", "0", "a cache of 0.0 gigabytes is none: give data.cache.gigabytes above 0"),
        ("num_workers", "-1", "data.num_workers must be 0 or more, not -1"),
    ],
)
def test_a_value_out_of_range_is_named_in_one_line(capsys, tmp_path, monkeypatch, option, value, message):
    monkeypatch.chdir(tmp_path)
    clip = Path(__file__).parents[1] / "configs" / "fit" / "clip.yaml"
    line = complaint(capsys, "fit", "--config", str(clip), f"--data.{option}", value)
    assert line == f"mofi: error: {message}"


def test_a_wrong_choice_is_answered_with_the_choices(capsys):
    line = complaint(capsys, "new-plugin", "x", "--kind", "sauce")
    assert "kind: expected one of 'objective', 'source', got sauce" in line
    clip = Path(__file__).parents[1] / "configs" / "fit" / "clip.yaml"
    line = complaint(capsys, "fit", "--config", str(clip), "--data.bad_row_policy.action", "rase")
    assert "data.bad_row_policy.action: expected one of 'skip', 'raise', got rase" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "pixels", "images", "out"], "mofi: interrupted; the same command goes on where it was\n"),
        (["data", "verify", "folder"], "mofi: interrupted\n"),
    ],
)
def test_an_interrupted_verb_says_whether_it_goes_on(monkeypatch, capsys, words, message):
    def interrupt(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 130
    assert capsys.readouterr().err == message
