"""Image retrieval within a set."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.base import Evaluator, Measurement, Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.measures.retrieval import retrieval_average_precision, retrieval_hits


class Retrieval(Evaluator):
    """GPR1200's protocol: mAP without and with the self-match, recall@k without, mAP of each domain.

    Args:
        k: numbers of results for recall@k.
    """

    task = "retrieval"
    measures = ("map", "map_with_self")

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        self.k = tuple(k)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; queries without another image of their entity count in `map_with_self` only."""
        images = embedder.labelled(data)
        embeddings, labels = images.embeddings, images.labels
        precision = retrieval_average_precision(embeddings, labels, exclude_self=True)
        scores = {
            "map": images.scores(precision),
            "map_with_self": images.scores(retrieval_average_precision(embeddings, labels)),
        }
        for k, hits in retrieval_hits(embeddings, labels, k=self.k, exclude_self=True).items():
            scores[f"recall@{k}"] = images.scores(hits)
        for domain in dict.fromkeys(data.domains or ()):
            assert data.domains is not None
            scores[f"map/{domain}"] = _of_domain(scores["map"], data.domains, domain)
        lonely = int(precision.isnan().sum())
        notes = (f"{lonely} images have no other image of their entity; only map_with_self counts them",)
        return Measurement(scores, {"queries": float(len(labels))}, notes if lonely else ())


def _of_domain(scores: Scores, domains: Sequence[str], domain: str) -> Scores:
    values = scores.values.clone()
    for row, other in enumerate(domains):
        if other != domain:
            values[row] = float("nan")
    return Scores(values, scores.clusters)
