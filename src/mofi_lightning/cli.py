"""The command `mofi`: each verb is one typed function whose signature is its command line.

Nothing heavy is imported before a verb is chosen; `fit` and `validate` are LightningCLI.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mofi_lightning.complaints import near, one_line
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: where its function is, and one line for `mofi --help`."""

    target: str
    summary: str


VERBS = {
    "pairs": Verb("mofi_lightning.sources.write:write_pairs", "read image + alt-text pairs from a source"),
    "curate": Verb(
        "mofi_lightning.curation.pipeline:curate", "turn pairs into an Image-to-Entities data set"
    ),
    "kb build": Verb(
        "mofi_lightning.curation.knowledge_bases.command:build",
        "turn a dump, a table or a package into a knowledge base",
    ),
    "kb stats": Verb(
        "mofi_lightning.curation.knowledge_bases.command:stats", "count entities, names and meanings"
    ),
    "kb lookup": Verb(
        "mofi_lightning.curation.knowledge_bases.command:lookup", "show what the names in a text may mean"
    ),
    "data build": Verb(
        "mofi_lightning.data.build:build_dataset", "turn a source into a data set without entities"
    ),
    "data tokenizer": Verb("mofi_lightning.data.build:train_tokenizer", "train a tokenizer on the texts"),
    "data stats": Verb("mofi_lightning.data.stats:stats", "count rows, entities, sizes and lengths"),
    "data verify": Verb("mofi_lightning.data.inspection:verify", "check every checksum, image and entity"),
    "data sample": Verb("mofi_lightning.data.sample:sample", "show random rows on a page"),
    "data bench": Verb("mofi_lightning.data.bench:bench", "measure how fast rows are read and decoded"),
    "vectors": Verb("mofi_lightning.encoders.label_vectors:vectors", "embed entity names for DeViSE"),
    "fit": Verb("mofi_lightning.training.command:run", "pretrain an image encoder"),
    "validate": Verb("mofi_lightning.training.command:run", "run one validation of a checkpoint"),
    "plan": Verb(
        "mofi_lightning.training.planning.options:run", "compute memory and time of a training run beforehand"
    ),
    "checkpoint inspect": Verb(
        "mofi_lightning.training.checkpoints.command:inspect", "show what is in a checkpoint"
    ),
    "checkpoint consolidate": Verb(
        "mofi_lightning.training.checkpoints.command:consolidate",
        "turn a checkpoint into one file of weights",
    ),
    "evaluate": Verb("mofi_lightning.evaluation.suite.command:evaluate", "measure and compare models"),
    "evaluate table": Verb(
        "mofi_lightning.evaluation.suite.command:table", "show results as Markdown and CSV"
    ),
    "embed": Verb("mofi_lightning.evaluation.embedding.command:embed", "embed images to parquet or npy"),
    "backbones": Verb("mofi_lightning.cli:backbones", "list image backbones by name"),
    "plugins": Verb("mofi_lightning.cli:plugins", "list installed plugins and their state"),
    "new-plugin": Verb(
        "mofi_lightning.plugin_template:new_plugin", "write a complete package of a new plugin"
    ),
}
# the verbs whose first word names a plugin, the plugin's kind, and the argument that it becomes
_OF_A_PLUGIN = {
    "pairs": ("source", "source"),
    "data build": ("source", "source"),
    "kb build": ("knowledge base reader", "reader"),
}
# the verbs that keep what they have done when they are interrupted
_GO_ON = frozenset({"evaluate", "embed", "curate", "data build"})


def main(args: Sequence[str] | None = None) -> None:
    """Run `mofi`; bad input ends with one line on standard error and exit code 2."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        words = _import_modules(words)
        _dispatch(words)
    except InputError as error:
        _fail(str(error))
    except argparse.ArgumentError as error:
        name, length = _verb(words)
        plugin = f" {words[length]}" if name in _OF_A_PLUGIN else ""
        _fail(f"{one_line(str(error))} (`mofi {name}{plugin} --help` lists the options)")
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        goes_on = _verb(words)[0] in _GO_ON
        then = "; the same command goes on where it was" if goes_on else ""
        print(f"mofi: interrupted{then}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # what libraries say of settings; anything else is a bug and keeps its traceback
        module, name = type(error).__module__, type(error).__name__
        if module.startswith("omegaconf.") or name == "MisconfigurationException":
            _fail(str(error))
        # the parser wraps what a constructor says of its arguments, where they may also be null
        refused = re.search(r"Does not validate against any of the Union(?s:.*)\n  - (.+)\n", str(error))
        if refused and isinstance(error, ValueError):
            _fail(next(iter(re.findall(r"\n  - (?!Expected)(.+)", str(error))), refused[1]))
        raise


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    if words[0] == "--version":
        from mofi_lightning import __version__

        print(f"mofi_lightning {__version__}")
        return
    group = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
    if group and words[0] not in VERBS and words[1:] in ([], ["-h"], ["--help"]):
        print(_overview(group))
        return
    name, length = _verb(words)
    if not name:
        given = " ".join(words[:2]) if group else words[0]
        raise InputError(f"{given!r} is no verb of mofi; `mofi --help` lists them{near(given, VERBS)}")
    if name in ("fit", "validate") and words[1:] in (["-h"], ["--help"]):
        from mofi_lightning.training.options import short_help

        print(short_help(name))
        return
    module, _, attribute = VERBS[name].target.partition(":")
    function = getattr(import_module(module), attribute)
    if name in ("fit", "validate", "plan"):
        function(words)
    elif name in _OF_A_PLUGIN:
        _run_with_plugin(name, function, words[length:])
    elif name == "backbones":
        _run(name, function, words[1:] or ["*"])
    else:
        _run(name, function, words[length:])


def _verb(words: list[str]) -> tuple[str, int]:
    """The verb at the start of `words`, and how many of them it takes; '' and 0 for none."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, length
    return "", 0


def _import_modules(words: list[str]) -> list[str]:
    """Import what `--module` names, from the working directory too; the other words are returned."""
    rest: list[str] = []
    position = 0
    while position < len(words):
        option, equals, name = words[position].partition("=")
        position += 1
        if option != "--module":
            rest.append(words[position - 1])
            continue
        if not equals:
            name = words[position] if position < len(words) else ""
            position += 1
        if not all(part.isidentifier() for part in name.split(".")):
            raise InputError(
                f"--module {name!r} is no module; give its dotted name, such as my_package.losses"
            )
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            import_module(name)
        except Exception as error:
            raise InputError(
                f"--module {name} cannot be imported: {type(error).__name__}: {error}"
            ) from error
    return rest


def _overview(verbs: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, verbs))
    lines = "\n".join(f"  {name:<{width}}  {VERBS[name].summary}" for name in verbs)
    return (
        "mofi: image representations from noisy entity-annotated images\n\n"
        f"usage: mofi VERB [options]\n\n{lines}\n\n"
        "`mofi VERB --help` explains the verb's options; `mofi --version` prints the version.\n"
        "`--module my_package.losses` first imports code that is not installed, with any verb."
    )


def _parser(name: str, description: str | None) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"mofi {name}", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", "-c", action="config", help="YAML file with the options below")
    return parser


def _run(name: str, function: Callable[..., None], words: list[str]) -> None:
    parser = _parser(name, _summary(function))
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    options = _parse(parser, _join_lists(function, words))
    function(**options)


def _run_with_plugin(name: str, function: Callable[..., None], words: list[str]) -> None:
    """`mofi NAME PLUGIN --output DIR`: the plugin's constructor arguments are options too."""
    from mofi_lightning import entry_points

    kind, argument = _OF_A_PLUGIN[name]
    if not words or words[0].startswith("-"):
        names = ", ".join(entry_points.load_all(kind))
        text = f"usage: mofi {name} {argument.upper()} --output DIR [options]\n\n{argument.title()}s: {names}"
        if words[:1] in (["-h"], ["--help"]):
            print(f"{text}\n\n`mofi {name} {argument.upper()} --help` explains the options.")
            return
        raise InputError(f"mofi {name} needs the name of a {kind}; there are {names}")
    if words[0] not in entry_points.names():
        found = list(entry_points.load_all(kind))
        raise InputError(
            f"no {kind} is called {words[0]!r}{near(words[0], found)}; there are {', '.join(found)}"
        )
    plugin = entry_points.load_kind(words[0], kind)
    parser = _parser(f"{name} {words[0]}", f"{_summary(function)}\n\n{_summary(plugin)}")
    parser.add_class_arguments(plugin, as_group=False)
    parser.add_function_arguments(function, as_group=False, skip={argument})
    options = _parse(parser, _join_lists(plugin, words[1:]))
    own = inspect.signature(function).parameters
    for_function = {option: options.pop(option) for option in list(options) if option in own}
    function(plugin(**options), **for_function)


def _summary(function: Callable[..., Any]) -> str:
    return re.split(r"\n\s*(?:Args|Raises|Returns):", inspect.getdoc(function) or "")[0].strip()


def _join_lists(function: Callable[..., None], words: list[str]) -> list[str]:
    """Let list options take several words: `--models a b` becomes `--models ["a", "b"]`."""
    import json

    parameters = inspect.signature(function, eval_str=True).parameters.values()
    lists = {f"--{p.name}" for p in parameters if typing.get_origin(p.annotation) in (list, Sequence)}
    joined: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        joined.append(word)
        if word in lists:
            end = next((i for i in range(position, len(words)) if words[i].startswith("--")), len(words))
            if not (end == position + 1 and words[position].startswith("[")):
                joined.append(json.dumps(words[position:end]))
                position = end
    return joined


def _parse(parser: Any, words: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = parser.instantiate_classes(parser.parse_args(words)).as_dict()
    options.pop("config", None)
    for name, value in options.items():
        # pathlib has taken one of the slashes
        if isinstance(value, Path) and re.match(r"[a-z][a-z0-9+.-]+:/", str(value)):
            raise InputError(
                f"--{name} {value.as_posix().replace(':/', '://', 1)}: this must be a path on this machine; "
                "data sets are read from object storage, but built here and then copied there"
            )
    return options


def _fail(message: str) -> typing.NoReturn:
    print(f"mofi: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def plugins() -> None:
    """List the plugins that are installed: their kind, where they come from, and what is wrong with them."""
    from mofi_lightning import entry_points

    rows = [("name", "kind", "class", "package", "version", "state", "error")]
    for plugin in entry_points.describe():
        origin = (plugin.target, plugin.package, plugin.version)
        rows.append((plugin.name, plugin.kind, *origin, "broken" if plugin.error else "ok", plugin.error))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def backbones(pattern: str) -> None:
    """List the image encoders that a model can be built on.

    Besides those listed, hf/ID takes any vision model of the Hugging Face hub or of a local folder.

    Args:
        pattern: shell pattern over the names, with or without prefix: 'vit*', 'timm/*clip*'. Without one,
            all are listed.

    Raises:
        InputError: nothing matches.
    """
    from mofi_lightning.encoders.registry import backbone_names

    names = backbone_names(pattern)
    if not names:
        wider = f"*{pattern.strip('*')}*"
        hint = f"; {wider!r} does" if backbone_names(wider) else f"{near(pattern, backbone_names())}"
        raise InputError(f"no backbone matches {pattern!r}{hint}; `mofi backbones` lists all")
    print("\n".join(names))
