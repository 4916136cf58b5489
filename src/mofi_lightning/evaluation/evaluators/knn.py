"""Classification by neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.base import Evaluator, Measurement
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators.retrieval import split_queries
from mofi_lightning.evaluation.measures.knn import NEIGHBOURS, TEMPERATURES, weighted_knn


class KNN(Evaluator):
    """Weighted k-nearest-neighbour classification of each image, best over the sweep.

    The images of the data's `fit` vote; where there are none, those that are no queries; where the data names
    no queries, each image is classified by all others. Where it names queries, only these are classified, as
    in `Retrieval`.

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
        """Measure; an image of a class that nobody can vote for is wrong, and a note counts these."""
        images, voters = embedder.labelled(data), embedder.fit(data)
        if data.queries is not None:
            images, voters = split_queries(images, data, voters)
        if voters is None and len(images.labels) < 2:
            return Measurement(skipped="one image has no neighbour to be classified by")
        index = (None, None) if voters is None else (voters.embeddings, voters.labels)
        sweep = weighted_knn(
            images.embeddings, images.labels, *index, k=self.k, temperatures=self.temperatures
        )
        values = {f"knn_k{k}_t{t:g}": value for (k, t), value in sweep.accuracy.items()}
        counts = (images if voters is None else voters).labels.bincount(minlength=len(data.classes))
        hopeless = int((counts[images.labels] <= (voters is None)).sum())
        notes = (
            f"{hopeless} of {len(images.labels)} images are of a class that no neighbour can have; knn_acc1 "
            "counts them as wrong (recall@1 leaves out what has no other image of its entity)",
        )
        return Measurement({"knn_acc1": images.scores(sweep.correct)}, values, notes if hopeless else ())
