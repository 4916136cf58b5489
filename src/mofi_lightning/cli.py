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
from typing import Any

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
    "data build": Verb(
        "mofi_lightning.data.build:build_dataset", "turn pairs into a data set without entities"
    ),
    "data tokenizer": Verb("mofi_lightning.data.build:train_tokenizer", "train a tokenizer on the texts"),
    "data stats": Verb("mofi_lightning.data.inspection:stats", "count rows, entities, sizes and lengths"),
    "data verify": Verb("mofi_lightning.data.inspection:verify", "check every checksum, image and entity"),
    "vectors": Verb("mofi_lightning.objectives.label_vectors:vectors", "embed entity names for DeViSE"),
    "fit": Verb("mofi_lightning.training.command:run", "pretrain an image encoder"),
    "validate": Verb("mofi_lightning.training.command:run", "run one validation of a checkpoint"),
    "evaluate": Verb("mofi_lightning.evaluation.command:evaluate", "measure and compare models"),
    "embed": Verb("mofi_lightning.evaluation.embed:embed", "embed images to parquet"),
    "backbones": Verb("mofi_lightning.cli:backbones", "list image backbones by name"),
    "plugins": Verb("mofi_lightning.cli:plugins", "list installed plugins and their state"),
    "new-plugin": Verb("mofi_lightning.plugin_template:new_plugin", "write a complete package of a new plugin"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run `mofi`; bad input ends with one line on standard error and exit code 2."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        words = _import_modules(words)
        _dispatch(words)
    except InputError as error:
        _fail(str(error))
    except argparse.ArgumentError as error:
        verb = " ".join(word for word in words[:2] if not word.startswith("-"))
        _fail(f"{one_line(str(error))} (`mofi {verb} --help` lists the options)")
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("mofi: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # what libraries say of settings; anything else is a bug and keeps its traceback
        module, name = type(error).__module__, type(error).__name__
        if module.startswith("omegaconf.") or name == "MisconfigurationException":
            _fail(str(error))
        raise


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return
    if words[0] == "--version":
        from mofi_lightning import __version__

        print(f"mofi_lightning {__version__}")
        return
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            break
    else:
        group = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
        if group and words[1:] in ([], ["-h"], ["--help"]):
            print(_overview(group))
            return
        raise InputError(
            f"{' '.join(words[:2])!r} is no verb of mofi; `mofi --help` lists them{_near(words[0])}"
        )
    module, _, attribute = VERBS[name].target.partition(":")
    function = getattr(import_module(module), attribute)
    if name in ("fit", "validate"):
        function(words)
    elif name == "pairs":
        _run_pairs(function, words[1:])
    else:
        _run(name, function, words[length:])


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
            raise InputError(f"--module {name!r} is no module; give its dotted name, such as my_package.losses")
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            import_module(name)
        except Exception as error:
            raise InputError(f"--module {name} cannot be imported: {type(error).__name__}: {error}") from error
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


def _near(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(VERBS), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _parser(name: str, description: str | None) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"mofi {name}", description=description, exit_on_error=False)
    parser.add_argument("--config", "-c", action="config", help="YAML file with the options below")
    return parser


def _run(name: str, function: Callable[..., None], words: list[str]) -> None:
    parser = _parser(name, _summary(function))
    parser.add_function_arguments(function, as_group=False, as_positional=True)
    options = _parse(parser, _join_lists(function, words))
    function(**options)


def _run_pairs(write_pairs: Callable[..., None], words: list[str]) -> None:
    """`mofi pairs SOURCE --output DIR`: the source's constructor arguments are options too."""
    from mofi_lightning import entry_points

    if not words or words[0].startswith("-"):
        sources = ", ".join(entry_points.load_all("source"))
        text = f"usage: mofi pairs SOURCE --output DIR [options]\n\nSources: {sources}"
        if words[:1] in (["-h"], ["--help"]):
            print(f"{text}\n\n`mofi pairs SOURCE --help` explains a source's options.")
            return
        raise InputError(f"mofi pairs needs the name of a source; there are {sources}")
    source_class = entry_points.load_kind(words[0], "source")
    parser = _parser(f"pairs {words[0]}", _summary(source_class))
    parser.add_class_arguments(source_class, as_group=False)
    parser.add_function_arguments(write_pairs, as_group=False, skip={"source"})
    options = _parse(parser, _join_lists(source_class, words[1:]))
    own = inspect.signature(write_pairs).parameters
    for_write = {name: options.pop(name) for name in list(options) if name in own}
    write_pairs(source_class(**options), **for_write)


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
    return options


# the parser's complaints, most telling first; of several, the last is the innermost
_COMPLAINTS = (
    (r"Option '([^']+)' is not accepted", "option {!r} is not accepted"),
    (r"Expected a dot import path string: (\S+)", "there is no class {!r}; is it misspelt or not installed?"),
    (r"Expected an? <class '([^']+)'>\. Got value: ([^\n]+)", "expected {}, got {}"),
    (r"Expected an? <class '([^']+)'>(?s:.*)Given value: ([^\n]+)", "expected {}, got {}"),
)


def one_line(message: str) -> str:
    """Condense a parser's message of many lines into where it is, what is wrong and what was given."""
    where = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    for pattern, wording in _COMPLAINTS:
        if found := re.findall(pattern, message):
            last = found[0] if isinstance(found[0], tuple) else (found[-1],)
            return f"{where}: {wording.format(*last)}"
    return " ".join(message.split())


def _fail(message: str) -> typing.NoReturn:
    print(f"mofi: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def plugins() -> None:
    """List the plugins that are installed: their kind, where they come from, and what is wrong with them."""
    from rich.console import Console
    from rich.table import Table

    from mofi_lightning import entry_points

    found = entry_points.describe()
    table = Table("name", "kind", "class", "package", "version", "state", box=None)
    for plugin in found:
        state = "broken" if plugin.error else "ok"
        table.add_row(plugin.name, plugin.kind, plugin.target, plugin.package, plugin.version, state)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for plugin in found:
        if plugin.error:
            print(f"{plugin.name}: {plugin.error}")


def backbones(pattern: str) -> None:
    """List the image encoders that a model can be built on.

    Besides those listed, hf/ID takes any vision model of the Hugging Face hub or of a local folder.

    Args:
        pattern: shell pattern over the names, with or without prefix: 'vit*', 'timm/*clip*'.

    Raises:
        InputError: nothing matches.
    """
    from mofi_lightning.encoders.registry import backbone_names

    names = backbone_names(pattern)
    if not names:
        raise InputError(f"no backbone matches {pattern!r}; try '*{pattern.strip('*')}*'")
    print("\n".join(names))
