"""The contracts of evaluation: data sets, evaluators, and what an evaluator found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

if TYPE_CHECKING:
    from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
    from mofi_lightning.evaluation.embedding.embedder import Embedder


class EvaluationData(ABC):
    """Base class of evaluation data sets: constructor arguments are configuration, `open` reads.

    Opening is cheap: images are read when they are embedded.
    """

    @abstractmethod
    def open(self) -> EvaluationSet:
        """Find the images and what they show.

        Raises:
            InputError: the data is not there (the message says how to get it) or is not what it should be.
        """


@dataclass(frozen=True)
class Scores:
    """What a measure gives each query; the measure's value is the mean over those that are not NaN.

    Attributes:
        values: float64 `[Q]`, on the CPU; NaN for a query for which the measure is not defined or that was
            left out.
        clusters: int64 `[Q]`, 0 or more: queries of one cluster (images of one entity) are not independent.
        over: what the queries are; rows of the set's images, or of its captions.
    """

    values: Tensor
    clusters: Tensor
    over: Literal["images", "captions"] = "images"

    @property
    def mean(self) -> float:
        """NaN if no query is defined."""
        return float(self.values.nanmean())


@dataclass(frozen=True)
class Measurement:
    """What an evaluator found of one model on one data set.

    Attributes:
        scores: measures with a value a query, by name.
        values: other numbers, by name: counts, settings chosen, measures that are no mean.
        notes: what a reader of the numbers must know, a line each: queries left out, classes without images.
        skipped: why nothing could be measured (no text tower, no captions); then the rest is empty.
    """

    scores: Mapping[str, Scores] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    skipped: str = ""

    def metrics(self) -> dict[str, float]:
        """All numbers by name, scores as their mean."""
        return {name: scores.mean for name, scores in self.scores.items()} | dict(self.values)


class Evaluator(ABC):
    """Base class of evaluators: constructor arguments are configuration, a call measures one model.

    An instance's attributes are its configuration, plain values that are recorded beside the results.

    Attributes:
        task: what is measured, for tables and file names; where CLIP_benchmark has a name for it, that name.
        measures: names of the numbers that go into tables, the primary one first; higher is better.
            They are unique among the evaluators.
    """

    task: ClassVar[str]
    measures: ClassVar[tuple[str, ...]]

    @property
    def config(self) -> dict[str, Any]:
        """Class and settings."""
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **vars(self)}

    @abstractmethod
    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure the model behind `embedder` on `data`.

        Raises:
            InputError: the data or the embeddings make every number meaningless.
        """
