"""Run a suite: each model on each data set; a result is written at once and never made twice."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mofi_lightning.evaluation.base import Evaluator
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Deferred, Embedder
from mofi_lightning.evaluation.embedding.images import EmbeddedImages
from mofi_lightning.evaluation.models.words import NamedModel
from mofi_lightning.evaluation.suite.results import (
    Result,
    hash_settings,
    hash_source,
    read_result,
    result_file,
    summarise,
    write_result,
)
from mofi_lightning.evaluation.suite.suite import Suite
from mofi_lightning.evaluation.versions import MEASURING, installed
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


class SuiteRun:
    """Every model on every data set of a suite, one `Evaluated` at a time.

    Embeddings are kept in `output/cache`, results in `output/results`. A result whose settings, data, model
    and library versions are unchanged is read, not made again.

    Args:
        models: what is measured.
        suite: on what, and how.
        output: folder for the results.
        workers: threads that decode images.
        skip_missing: leave out data sets that cannot be opened, with a warning.

    Attributes:
        failures: what could not be measured and why, a line each; the rest goes on.

    Raises:
        InputError: a data set cannot be opened, or a model is not there.
    """

    def __init__(
        self,
        models: Sequence[NamedModel],
        suite: Suite,
        output: Path,
        workers: int = 2,
        skip_missing: bool = False,
    ) -> None:
        self.models = models
        self.suite = suite
        self.output = output
        self.workers = workers
        self.failures: list[str] = []
        # all that may be misspelt is looked up before anything is embedded
        self._hashes = [model.content_hash() for model in models]
        self._data = _open_all(suite, skip_missing)

    def __iter__(self) -> Iterator[Evaluated]:
        for model, model_hash in zip(self.models, self._hashes, strict=True):
            embedder = Embedder(
                Deferred(model.load), self.output / "cache", model_hash, self.workers, description=model.name
            )
            for name, data in self._data.items():
                try:
                    yield self._evaluate(model, model_hash, embedder, name, data)
                except InputError as error:
                    self._fail(f"{model.name} on {name}: {error}")

    def _evaluate(
        self, model: NamedModel, model_hash: str, embedder: Embedder, name: str, data: EvaluationSet
    ) -> Evaluated:
        results = {
            evaluator.task: _result(model, model_hash, embedder, name, data, evaluator, self.output)
            for evaluator in self.suite.tasks[name].evaluators
        }
        return Evaluated(model, name, data, embedder.images(data), results)

    def _fail(self, what: str) -> None:
        self.failures.append(what)
        print(f"mofi: {what}", file=sys.stderr)


def _open_all(suite: Suite, skip_missing: bool) -> dict[str, EvaluationSet]:
    opened: dict[str, EvaluationSet] = {}
    for name, task in suite.tasks.items():
        try:
            opened[name] = task.data.open()
        except InputError as error:
            if not skip_missing:
                others = "; --skip_missing true leaves it out" if len(suite.tasks) > 1 else ""
                raise InputError(f"data set {name!r}: {error}{others}") from error
            print(f"mofi: data set {name!r} is left out: {error}", file=sys.stderr)
            continue
    if not opened:
        raise InputError(f"none of the {len(suite.tasks)} data sets can be opened; the lines above say why")
    return opened


def _result(
    model: NamedModel,
    model_hash: str,
    embedder: Embedder,
    dataset: str,
    data: EvaluationSet,
    evaluator: Evaluator,
    output: Path,
) -> Result:
    settings = {
        "evaluator": evaluator.config,
        "source": hash_source(evaluator),
        "data": data.fingerprint,
        "model": model_hash,
    }
    # as they are read again: a tuple is a list in JSON
    settings = json.loads(json.dumps(settings, default=str))
    settings_hash = hash_settings(settings, installed(MEASURING))
    file = result_file(output, model.name, dataset, evaluator.task)
    if file.is_file():
        try:
            known = read_result(file)
        except InputError as error:
            _log.warning("%s", error)
        else:
            if (known.settings_hash, known.model, known.dataset) == (settings_hash, model.name, dataset):
                return known
    measurement = evaluator(embedder, data)
    embedded = embedder.images(data)
    notes = (*data.notes, *embedded.left_out(data.keys), *measurement.notes)
    measurement = replace(measurement, notes=notes)
    result = Result(
        model=model.name,
        dataset=dataset,
        task=evaluator.task,
        measures=evaluator.measures,
        **summarise(measurement),
        pretrained=model.origin,
        counts={"images": len(data.keys), "classes": len(data.classes), **embedded.failures()},
        settings=settings,
        settings_hash=settings_hash,
        versions=installed(MEASURING),
        training_seconds=model.training_seconds(),
    )
    write_result(output, result)
    return result
