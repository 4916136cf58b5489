"""The contract of evaluators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from mofi_lightning.evaluation.cache import Embedder
    from mofi_lightning.evaluation.datasets import EvaluationSet


class Evaluator(ABC):
    """Base class of evaluators: constructor arguments are configuration, a call measures one model.

    Attributes:
        measures: names of the values that go into the table of results, the primary one first.
    """

    measures: ClassVar[tuple[str, ...]]

    @property
    def primary(self) -> str:
        """The one value that stands for the evaluator."""
        return self.measures[0]

    @abstractmethod
    def __call__(self, embedder: Embedder, data: EvaluationSet) -> dict[str, float]:
        """Measure the model behind `embedder` on `data`.

        Returns:
            The values by name, with a standard error under `{name}_se` where there is one. Empty if the model
            or the data cannot be measured in this way (no text tower, no captions).
        """
