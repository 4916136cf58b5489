"""Classification by neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.base import Evaluator, Measurement
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.measures.knn import NEIGHBOURS, TEMPERATURES, weighted_knn


class KNN(Evaluator):
    """Weighted k-nearest-neighbour classification of each image, best over the sweep.

    The images of the data's `fit` vote; where there are none, each image is classified by all others.

    Args:
        k: numbers of neighbours to try.
        temperatures: values of T to try.
    """

    task = "knn"
    measures = ("knn_acc1",)

    def __init__(self, k: Sequence[int] = NEIGHBOURS, temperatures: Sequence[float] = TEMPERATURES) -> None:
        self.k = tuple(k)
        self.temperatures = tuple(temperatures)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure."""
        images, fit = embedder.labelled(data), embedder.fit(data)
        index = (None, None) if fit is None else (fit.embeddings, fit.labels)
        sweep = weighted_knn(
            images.embeddings, images.labels, *index, k=self.k, temperatures=self.temperatures
        )
        values = {f"knn_k{k}_t{t:g}": value for (k, t), value in sweep.accuracy.items()}
        return Measurement({"knn_acc1": images.scores(sweep.correct)}, values)
