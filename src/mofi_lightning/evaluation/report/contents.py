"""What the report shows of one model on one data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.report.curves import Curve, read_curves
from mofi_lightning.evaluation.report.projection import Projection, drawn_rows, project
from mofi_lightning.evaluation.report.queries import Found, choose_queries, search, worst_queries
from mofi_lightning.evaluation.suite.results import Result
from mofi_lightning.evaluation.suite.running import Evaluated

CURVES = {
    "val/map": "Retrieval mAP on validation images",
    "train/loss": "Training loss",
    "val/loss": "Validation loss",
}


@dataclass(frozen=True)
class ModelReport:
    """What the report shows of one model on one data set; no embeddings, so that many fit into memory.

    Attributes:
        name: of the model.
        dataset: name of the data set.
        data: the opened set.
        results: by task.
        seconds: training time, where it is known.
        curves: of its training, by column of `metrics.csv`.
        neighbours: what it finds for queries that are the same for every model.
        worst: what it finds for the queries it finds hardest, with their average precision.
        projection: its embeddings on a plane.
    """

    name: str
    dataset: str
    data: EvaluationSet
    results: dict[str, Result]
    seconds: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    neighbours: list[Found] = field(default_factory=list)
    worst: list[tuple[float, Found]] = field(default_factory=list)
    projection: Projection = field(default_factory=lambda: Projection({}, "no embeddings"))

    @property
    def measures(self) -> list[str]:
        """Names of the measures that tables show."""
        return [name for result in self.results.values() for name in result.measures]

    @property
    def values(self) -> dict[str, float]:
        """All metrics that are defined."""
        found = {k: v for r in self.results.values() for k, v in r.metrics.items() if v is not None}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors."""
        return {k: v for r in self.results.values() for k, v in r.errors.items() if math.isfinite(v)}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals."""
        found = {k: pair for r in self.results.values() for k, pair in r.intervals.items()}
        return {name: (low, high) for name, (low, high) in found.items() if math.isfinite(high - low)}

    def why_missing(self, measure: str) -> str:
        """Why the model has no value of `measure`."""
        for result in self.results.values():
            if measure in result.measures:
                return result.skipped or "not defined on this data"
        return "not measured"

    @classmethod
    def of(cls, evaluated: Evaluated) -> ModelReport:
        """Collect what is shown."""
        model, data, embedded = evaluated.model, evaluated.data, evaluated.embedded
        usable, embeddings = embedded.usable.tolist(), embedded.embeddings
        precisions = [r.scores["map"] for r in evaluated.results.values() if "map" in r.scores]
        worst = worst_queries(precisions[0] if precisions else None)
        return cls(
            name=model.name,
            dataset=evaluated.dataset,
            data=data,
            results=evaluated.results,
            seconds=model.training_seconds(),
            curves=read_curves(model.run, list(CURVES)) if model.run else {},
            neighbours=search(embeddings, data, usable, choose_queries(data, usable)),
            worst=[(worst[found.query], found) for found in search(embeddings, data, usable, list(worst))],
            projection=project(embeddings, drawn_rows(data, usable)),
        )
