"""Image retrieval within a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mofi_lightning.evaluation.base import Evaluator, Measurement, Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder, LabelledImages
from mofi_lightning.evaluation.measures.retrieval import (
    average_precision,
    average_precision_at_r,
    first_hit,
    hits,
    measure_retrieval,
)
from mofi_lightning.types import InputError


class Retrieval(Evaluator):
    """Retrieval of images of the same entity: mAP, mAP@R, recall@k, also of each domain.

    Each image queries all others; `map_with_self` is GPR1200's protocol, where it finds itself too, and a
    random ranking scores 0.1. recall@1 is the top-1 accuracy. Where the data names queries, these search all
    images that are no queries, so that no query can find itself.

    Args:
        k: numbers of results for recall@k; one that takes all images there are to find is left out.
    """

    task = "retrieval"
    measures = ("map", "map_with_self", "map@R", "recall@1")

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        self.k = tuple(sorted({1, *k}))

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; queries without another image of their entity count in `map_with_self` only.

        Raises:
            InputError: no query, or no image to search.
        """
        images = everything = embedder.labelled(data)
        measures = {"map": average_precision, "map@R": average_precision_at_r, "first": first_hit}
        if data.queries is None:
            found = measure_retrieval(measures, images.embeddings, images.labels, exclude_self=True)
            itself = measure_retrieval({"": average_precision}, images.embeddings, images.labels)[""]
            scores = {"map": images.scores(found["map"]), "map_with_self": images.scores(itself)}
            findable = len(images.labels) - 1
        else:
            images, index = split_queries(images, data)
            found = measure_retrieval(
                measures, images.embeddings, images.labels, index.embeddings, index.labels
            )
            scores = {"map": images.scores(found["map"])}
            findable = len(index.labels)
        scores["map@R"] = images.scores(found["map@R"])
        recall, notes = telling(self.k, findable, "recall@k", "images to find")
        for k in recall:
            scores[f"recall@{k}"] = images.scores(hits(found["first"], k))
        for domain in dict.fromkeys(data.domains or ()):
            assert data.domains is not None
            for name in ("map", "map_with_self"):
                if name not in scores:
                    continue
                of_domain = _of_domain(scores[name], data.domains, domain)
                if of_domain.values.isnan().all():
                    notes.append(f"{name}/{domain} is left out: no query of {domain} has an image to find")
                else:
                    scores[f"{name}/{domain}"] = of_domain
        lonely, queries = int(found["map"].isnan().sum()), len(images.labels)
        if lonely:
            counted = "no measure here" if data.queries is not None else "only map_with_self"
            notes.append(
                f"{lonely} of {queries} queries have no other image of their entity; {counted} counts them "
                "(recall@1 leaves them out, knn_acc1 counts them as wrong)"
            )
        return Measurement(scores, {"queries": float(queries)}, (*notes, *_copies(data, everything)))


def telling(ks: Sequence[int], findable: int, measure: str, what: str) -> tuple[list[int], list[str]]:
    """The k that say something: 1, and those at which not all there is to find is found; and a note.

    Args:
        ks: numbers of results.
        findable: the most that a query can find.
        measure: for the note.
        what: can be found, for the note.
    """
    kept = [k for k in ks if k == 1 or k < findable]
    if len(kept) == len(ks):
        return kept, []
    shown = ", ".join(str(k) for k in ks if k not in kept)
    return kept, [f"{measure} is left out at k = {shown}: there are {findable} {what}"]


def split_queries(
    images: LabelledImages, data: EvaluationSet, index: LabelledImages | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """The queries that `data` names, and what they search: `index`, or else all that are no queries.

    Raises:
        InputError: there are none of one of the two.
    """
    is_query = torch.isin(images.rows, torch.tensor(list(data.queries or ()), dtype=torch.long))
    queries = _rows(images, is_query)
    index = _rows(images, ~is_query) if index is None else index
    if not len(queries.rows) or not len(index.rows):
        raise InputError(
            f"data set {data.name} has {len(queries.rows)} queries and {len(index.rows)} images to search "
            "that can be decoded; both are needed"
        )
    return queries, index


def _rows(images: LabelledImages, mask: Tensor) -> LabelledImages:
    embeddings, features, labels, rows, size = images
    return LabelledImages(embeddings[mask], features[mask], labels[mask], rows[mask], size)


def _copies(data: EvaluationSet, images: LabelledImages) -> Iterator[str]:
    files = _repeated(data.digests)
    if files:
        yield f"{files} images are the same file as another one of the set; finding copies inflates mAP"
    equal = _repeated(row.tobytes() for row in images.embeddings.numpy())
    if equal:
        yield f"{equal} of {len(images.rows)} images have exactly the embedding of another one; they tie"


def _repeated(things: Iterable[Hashable]) -> int:
    return sum(count for count in Counter(things).values() if count > 1)


def _of_domain(scores: Scores, domains: Sequence[str], domain: str) -> Scores:
    here = torch.tensor([other == domain for other in domains])
    return Scores(scores.values.where(here, torch.nan), scores.clusters)
