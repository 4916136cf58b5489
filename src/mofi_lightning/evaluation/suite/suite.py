"""What is measured on what: the tasks of a suite, read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mofi_lightning.evaluation.base import EvaluationData, Evaluator
from mofi_lightning.evaluation.datasets import at_path
from mofi_lightning.evaluation.evaluators import standard_evaluators
from mofi_lightning.types import InputError


@dataclass(frozen=True)
class Task:
    """One data set and what is measured on it.

    Attributes:
        data: the data set.
        evaluators: what to measure; the standard ones if empty.
    """

    data: EvaluationData
    evaluators: list[Evaluator] = field(default_factory=list)


@dataclass(frozen=True)
class Suite:
    """Several tasks.

    Attributes:
        tasks: by the name under which tables and files show the data set.
    """

    tasks: dict[str, Task]


def load_suites(files: Sequence[Path], paths: Sequence[str]) -> Suite:
    """The tasks of all `files` together, and one with the standard evaluators for each of `paths`.

    Raises:
        InputError: no task, a name twice, or a file that is no suite.
    """
    tasks: dict[str, Task] = {}
    for file in files:
        suite = _parse(file)
        for name, task in suite.tasks.items():
            if name in tasks:
                raise InputError(f"two data sets are called {name!r}, the second in {file}; rename one")
            tasks[name] = task
    for path in paths:
        name = _name(Path(path))
        if name in tasks:
            raise InputError(f"two data sets are called {name!r}; name them in a suite's YAML")
        tasks[name] = Task(at_path(path))
    if not tasks:
        raise InputError(
            "nothing to evaluate on; give --data pairs/test.parquet or "
            "--suite configs/evaluation/standard.yaml"
        )
    return Suite({name: _complete(name, task) for name, task in tasks.items()})


def _name(path: Path) -> str:
    """The name of a folder; of a file also that of its folder, because every folder has a test.parquet."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.stem}"


def _complete(name: str, task: Task) -> Task:
    kinds = [evaluator.task for evaluator in task.evaluators]
    twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
    if twice is not None:
        raise InputError(
            f"data set {name!r} is measured by two evaluators of {twice}, whose results would have one name; "
            "name the data set twice"
        )
    return Task(task.data, task.evaluators or standard_evaluators())


def _check_keys(top: yaml.Node | None) -> None:
    keys = [key.value for key, _ in top.value] if isinstance(top, yaml.MappingNode) else []
    if set(keys) != {"tasks"}:
        found = f"has {', '.join(map(str, keys))}" if keys else "holds none"
        raise ValueError(
            f"its one key is `tasks`, with a data set and its evaluators by name; the file {found}"
        )
    _refuse_repeated_keys(top)


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    """YAML's parsers keep the last of several keys of one name, and so would lose a data set."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice in line {node.start_mark.line + 1} and below")
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _refuse_repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value)


def _parse(file: Path) -> Suite:
    from jsonargparse import ArgumentParser

    if not file.is_file():
        raise InputError(f"no suite at {file}; give a YAML file, such as configs/evaluation/standard.yaml")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Suite)
    try:
        _check_keys(yaml.compose(file.read_text(encoding="utf-8")))
        return Suite(**parser.instantiate_classes(parser.parse_path(str(file))).as_dict())
    except InputError:
        raise
    except Exception as error:  # of YAML, of types, of what is named in it
        raise InputError(f"{file} is no suite: {' '.join(str(error).split())}") from error
