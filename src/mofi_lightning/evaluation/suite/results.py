"""Results on disk: one JSON a model, data set and task, with the scores of its queries beside it.

`FOLDER/results/MODEL/DATASET/TASK.json` has CLIP_benchmark's keys (`dataset`, `model`, `pretrained`, `task`,
`metrics`) and ours; `TASK.safetensors` has the value of each query, which paired tests between models need.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mofi_lightning.evaluation.base import Evaluator, Measurement, Scores
from mofi_lightning.evaluation.measures.confidence import bootstrap_interval, mean_and_error
from mofi_lightning.types import InputError

RESULTS = "results"
_ROOT = Path(__file__).parents[1]
# of the columns in tables
_ORDER = (
    "retrieval",
    "knn",
    "zeroshot_classification",
    "zeroshot_retrieval",
    "linear_probe",
    "ridge_probe",
    "devise_zeroshot",
    "conse_zeroshot",
)


@dataclass(frozen=True)
class Result:
    """What is recorded of one model, data set and task.

    Attributes:
        model: name of the model.
        dataset: name of the data set.
        task: of the evaluator.
        measures: of `metrics`, those that tables show, the primary one first.
        metrics: all numbers by name; None for one that is not defined.
        errors: standard error over clusters, of the metrics that are means of scores.
        intervals: 95 % intervals over clusters (`bootstrap_interval`) of the same; of shares, within 0..1.
        notes: what a reader of the numbers must know.
        skipped: why nothing was measured.
        pretrained: where the model came from.
        counts: images, classes, and images left out by kind of fault.
        settings: of evaluator and data, hashes of the model's files and the data's content.
        settings_hash: of `settings` and `versions`; equal hashes give equal numbers.
        versions: of the libraries that made the numbers.
        training_seconds: of the model, where its run recorded them.
    """

    model: str
    dataset: str
    task: str
    measures: tuple[str, ...]
    metrics: dict[str, float | None]
    errors: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    notes: tuple[str, ...]
    skipped: str
    pretrained: str
    counts: dict[str, int]
    settings: dict[str, Any]
    settings_hash: str
    versions: dict[str, str]
    training_seconds: float | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict, repr=False, compare=False)


def summarise(measurement: Measurement) -> dict[str, Any]:
    """The fields of a `Result` that follow from a measurement."""
    errors, intervals = {}, {}
    for name, scores in measurement.scores.items():
        error = mean_and_error(scores.values, scores.clusters)[1]
        if math.isfinite(error):
            errors[name] = error
            low, high = bootstrap_interval(scores.values, scores.clusters)
            known = scores.values[~scores.values.isnan()]
            if known.min() >= 0 and known.max() <= 1:
                low, high = max(low, 0.0), min(high, 1.0)
            intervals[name] = (low, high)
    metrics = {k: v if math.isfinite(v) else None for k, v in measurement.metrics().items()}
    return {
        "metrics": metrics,
        "errors": errors,
        "intervals": intervals,
        "notes": measurement.notes,
        "skipped": measurement.skipped,
        "scores": measurement.scores,
    }


def hash_settings(settings: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Hash of what a result depends on."""
    text = json.dumps([settings, versions], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_source(evaluator: Evaluator) -> str:
    """Hash of the code that an evaluator is made of: that of a plugin may change at any time."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({file for cls in type(evaluator).__mro__ for file in _sources(cls)}):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _sources(cls: type) -> Iterable[Path]:
    package = cls.__module__.partition(".")[0]
    if package in sys.stdlib_module_names or package == "builtins":
        return ()
    if package == "mofi_lightning":
        return (file for folder in ("measures", "evaluators") for file in (_ROOT / folder).rglob("*.py"))
    source = getattr(sys.modules[package], "__file__", None)
    if source is None or package == "__main__":
        return ()
    return Path(source).parent.rglob("*.py") if Path(source).name == "__init__.py" else (Path(source),)


def result_file(folder: Path, model: str, dataset: str, task: str) -> Path:
    """Where the result of a model, data set and task is."""
    return folder / RESULTS / file_name(model) / file_name(dataset) / f"{task}.json"


def file_name(name: str) -> str:
    """`name` as a file's name: what file systems do not take becomes `_`; no two become the same."""
    plain = re.sub(r"[^\w.+=-]", "_", name).lstrip(".")[:100] or "_"
    if plain == name and not re.search(r"-[0-9a-f]{16}$", name):
        return name
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"


def write_result(folder: Path, result: Result) -> None:
    """Write the scores, then the JSON, each whole or not at all."""
    file = result_file(folder, result.model, result.dataset, result.task)
    file.parent.mkdir(parents=True, exist_ok=True)
    vectors, mark = file.with_suffix(".safetensors"), f".{os.getpid()}.partial"
    if result.scores:
        tensors: dict[str, Tensor] = {}
        for name, scores in result.scores.items():
            tensors[f"{name}.values"] = scores.values.contiguous()
            tensors[f"{name}.clusters"] = scores.clusters.clone()
        # names the result: what is beside a JSON after an interruption may be of another one
        save_file(tensors, f"{vectors}{mark}", metadata={"settings_hash": result.settings_hash})
        os.replace(f"{vectors}{mark}", vectors)
    content = asdict(Result(**{**vars(result), "scores": {}}))
    content["scores"] = {name: scores.over for name, scores in result.scores.items()}
    partial = file.with_suffix(mark)
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(partial, file)


def read_result(file: Path) -> Result:
    """Read what `write_result` wrote.

    Raises:
        InputError: the file is not one of these, or is damaged.
    """
    try:
        content = json.loads(file.read_text())
        for name in ("measures", "notes"):
            content[name] = tuple(content[name])
        content["intervals"] = {name: tuple(pair) for name, pair in content["intervals"].items()}
        over = content.pop("scores")
        vectors = file.with_suffix(".safetensors")
        scores = _read_scores(vectors, over, content["settings_hash"]) if over else {}
        return Result(**content, scores=scores)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"{file} is no result of `mofi evaluate` ({error}); delete it, and it is made anew"
        ) from error


def _read_scores(file: Path, over: Mapping[str, Any], settings_hash: str) -> dict[str, Scores]:
    with safe_open(file, "pt") as stored:
        if (stored.metadata() or {}).get("settings_hash") != settings_hash:
            raise ValueError(f"{file.name} is of another result")
        return {
            name: Scores(stored.get_tensor(f"{name}.values"), stored.get_tensor(f"{name}.clusters"), what)
            for name, what in over.items()
        }


def read_results(folder: Path) -> list[Result]:
    """All results below the folder of an evaluation, sorted by data set, model, task.

    Raises:
        InputError: there are none, or one is damaged.
    """
    found = [read_result(file) for file in _files(folder)]
    if not found:
        raise InputError(f"{folder} holds no results; `mofi evaluate --output {folder}` writes them")
    return sorted(found, key=lambda result: (result.dataset, result.model, _place(result.task), result.task))


def _place(task: str) -> int:
    return _ORDER.index(task) if task in _ORDER else len(_ORDER)


def _files(folder: Path) -> Iterator[Path]:
    return (folder / RESULTS).glob("*/*/*.json")
