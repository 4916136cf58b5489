"""What the report shows of one model on one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.measures.retrieval import nearest_neighbours
from mofi_lightning.evaluation.report.curves import Curve, read_curves
from mofi_lightning.evaluation.suite.results import Result
from mofi_lightning.evaluation.suite.running import Evaluated

CURVES = {
    "val/map": "Retrieval mAP on validation images",
    "train/loss": "Training loss",
    "val/loss": "Validation loss",
}
NEIGHBOURS = 10
_QUERIES = 8


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
        neighbours: row of a query -> rows of its nearest images, nearest first.
        failures: number of images left out, by kind of fault.
    """

    name: str
    dataset: str
    data: EvaluationSet
    results: dict[str, Result]
    seconds: float | None
    curves: dict[str, Curve]
    neighbours: dict[int, list[int]]
    failures: dict[str, int]

    @property
    def values(self) -> dict[str, float]:
        """All metrics that are defined."""
        return {k: v for r in self.results.values() for k, v in r.metrics.items() if v is not None}

    @property
    def errors(self) -> dict[str, float]:
        """Standard errors."""
        return {k: v for r in self.results.values() for k, v in r.errors.items()}

    @classmethod
    def of(cls, evaluated: Evaluated) -> ModelReport:
        """Collect what is shown."""
        model, data, embedded = evaluated.model, evaluated.data, evaluated.embedded
        usable = embedded.usable.tolist()
        shown = [row for row in choose_queries(data) if row not in embedded.failed]
        near = nearest_neighbours(
            embedded.embeddings[embedded.usable], [usable.index(row) for row in shown], NEIGHBOURS
        )
        return cls(
            name=model.name,
            dataset=evaluated.dataset,
            data=data,
            results=evaluated.results,
            seconds=model.training_seconds(),
            curves=read_curves(model.run, list(CURVES)) if model.run else {},
            neighbours={
                row: [usable[n] for n in found] for row, found in zip(shown, near.tolist(), strict=True)
            },
            failures=embedded.failures(),
        )


def choose_queries(data: EvaluationSet) -> Sequence[int]:
    """Rows of the images that the report uses as queries: one each of entities spread over the whole set.

    Only entities with another image to find.
    """
    first: dict[str, int] = {}
    several: dict[str, int] = {}
    for row, entity in enumerate(data.entities):
        if entity in first:
            several[entity] = first[entity]
        first.setdefault(entity, row)
    rows = [several[entity] for entity in sorted(several)]
    number = min(len(rows), _QUERIES)
    return [rows[i * len(rows) // number] for i in range(number)]
