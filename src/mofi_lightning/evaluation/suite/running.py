"""Run a suite: each model on each data set, each result written as soon as it is known and never made twice."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mofi_lightning.evaluation.base import Evaluator
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.embedding.images import EmbeddedImages
from mofi_lightning.evaluation.models.words import NamedModel
from mofi_lightning.evaluation.suite.results import (
    Result,
    hash_settings,
    read_result,
    result_file,
    summarise,
    versions,
    write_result,
)
from mofi_lightning.evaluation.suite.suite import Suite
from mofi_lightning.types import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """One model on one data set.

    Attributes:
        model: the model.
        dataset: name of the data set in the suite.
        data: the opened set.
        embedded: the model's embeddings of it.
        results: by task.
    """

    model: NamedModel
    dataset: str
    data: EvaluationSet
    embedded: EmbeddedImages
    results: dict[str, Result]


def run_suite(
    models: Sequence[NamedModel], suite: Suite, output: Path, workers: int = 2
) -> Iterator[Evaluated]:
    """Measure every model on every data set of `suite`.

    Embeddings are kept in `output/cache`, results in `output/results`. A result whose settings, data, model and
    library versions are unchanged is read, not made again.

    Raises:
        InputError: a data set is missing, or a model or data set cannot be measured.
    """
    opened = {name: task.data.open() for name, task in suite.tasks.items()}
    for name, data in opened.items():
        for note in data.notes:
            _log.warning("%s: %s", name, note)
    for model in models:
        model_hash = model.content_hash()
        embedder = Embedder(model.load(), output / "cache", model_hash, workers, description=model.name)
        for name, task in suite.tasks.items():
            data = opened[name]
            results = {
                evaluator.task: _result(model, model_hash, embedder, name, data, evaluator, output)
                for evaluator in task.evaluators
            }
            yield Evaluated(model, name, data, embedder.images(data), results)


def _result(
    model: NamedModel,
    model_hash: str,
    embedder: Embedder,
    dataset: str,
    data: EvaluationSet,
    evaluator: Evaluator,
    output: Path,
) -> Result:
    settings = {"evaluator": evaluator.config, "data": data.fingerprint, "model": model_hash}
    settings_hash = hash_settings(settings, versions())
    file = result_file(output, model.name, dataset, evaluator.task)
    if file.is_file():
        try:
            known = read_result(file)
        except InputError as error:
            _log.warning("%s", error)
        else:
            if known.settings_hash == settings_hash:
                return known
    measurement = evaluator(embedder, data)
    failures = embedder.images(data).failures()
    result = Result(
        model=model.name,
        dataset=dataset,
        task=evaluator.task,
        measures=evaluator.measures,
        **summarise(measurement),
        pretrained=model.origin,
        counts={"images": len(data.keys), "classes": len(data.classes), **failures},
        settings=settings,
        settings_hash=settings_hash,
        versions=versions(),
        training_seconds=model.training_seconds(),
    )
    write_result(output, result)
    return result
