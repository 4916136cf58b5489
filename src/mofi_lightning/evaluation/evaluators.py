"""The standard evaluators: the measures on the images, names and captions of an evaluation set."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from mofi_lightning.encoders.label_encoders import label_text
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.evaluation.base import Evaluator
from mofi_lightning.evaluation.cache import Embedder
from mofi_lightning.evaluation.datasets import EvaluationSet
from mofi_lightning.evaluation.image_text import image_text_recall
from mofi_lightning.evaluation.knn import NEIGHBOURS, TEMPERATURES, weighted_knn
from mofi_lightning.evaluation.retrieval import retrieval_average_precision, retrieval_hits
from mofi_lightning.evaluation.zero_shot import TEMPLATES, class_weights, zero_shot_rank
from mofi_lightning.types import InputError


def mean_and_error(values: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Mean of `values` `[N]` and its standard error, both without NaN rows.

    Images of one entity are not independent, so deviations are summed within each of the `clusters` `[N]`
    first (cluster-robust error of a mean). With one row a cluster it is a share's sqrt(p (1 - p) / n).
    """
    counted = ~values.isnan()
    kept, group = values[counted].double(), clusters[counted]
    if not len(kept):
        return float("nan"), float("nan")
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).scatter_add_(0, group, kept - kept.mean())
    return float(kept.mean()), float(sums.square().sum().sqrt() / len(kept))


def _record(name: str, values: Tensor, clusters: Tensor) -> dict[str, float]:
    mean, error = mean_and_error(values, clusters)
    return {name: mean, f"{name}_se": error}


class Retrieval(Evaluator):
    """GPR1200's protocol: mAP without and with the self-match, recall@k without, mAP of each domain.

    Args:
        k: numbers of results for recall@k.
    """

    measures = ("map", "map_with_self")

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        self.k = tuple(k)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> dict[str, float]:
        """Measure; queries without another image of their entity count in `map_with_self` only."""
        embeddings, labels = embedder.labelled(data)
        precision = retrieval_average_precision(embeddings, labels, exclude_self=True)
        result = _record("map", precision, labels)
        result |= _record("map_with_self", retrieval_average_precision(embeddings, labels), labels)
        for k, hits in retrieval_hits(embeddings, labels, k=self.k, exclude_self=True).items():
            result |= _record(f"recall_at_{k}", hits, labels)
        if data.domains is not None:
            domains = [data.domains[row] for row in embedder.images(data).usable.tolist()]
            for domain in dict.fromkeys(domains):
                rows = torch.tensor([other == domain for other in domains])
                result |= _record(f"map_{domain}", precision[rows], labels[rows])
        return result | {
            "queries": float(len(labels)),
            "queries_without_positive": float(precision.isnan().sum()),
        }


class KNN(Evaluator):
    """Weighted k-nearest-neighbour classification of each image by all others, best over the sweep.

    Args:
        k: numbers of neighbours to try.
        temperatures: values of T to try.
    """

    measures = ("knn",)

    def __init__(self, k: Sequence[int] = NEIGHBOURS, temperatures: Sequence[float] = TEMPERATURES) -> None:
        self.k = tuple(k)
        self.temperatures = tuple(temperatures)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> dict[str, float]:
        """Measure."""
        embeddings, labels = embedder.labelled(data)
        sweep = weighted_knn(embeddings, labels, k=self.k, temperatures=self.temperatures)
        result = _record("knn", sweep.correct, labels)
        return result | {f"knn_k{k}_t{t:g}": value for (k, t), value in sweep.accuracy.items()}


class ZeroShot(Evaluator):
    """Classification by the names of all entities of the set.

    A model with a text tower embeds them in the prompts of `templates`. One with a label space only (DeViSE)
    is asked there: mapped images against vectors of the names, with descriptions if its label vectors are of
    both. If the text model that made these is missing, the measure is left out with a note.

    Args:
        templates: prompts with `{}` where the name goes.
    """

    measures = ("zero_shot_top1", "zero_shot_top5")

    def __init__(self, templates: Sequence[str] = TEMPLATES) -> None:
        self.templates = tuple(templates)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> dict[str, float]:
        """Measure; empty without names, or without text tower or label space."""
        space = embedder.model.label_space
        if not data.names or (space is None and not embedder.has_text):
            return {}
        embeddings, labels = embedder.labelled(data)
        result: dict[str, float] = {}
        if space is None or embedder.has_text:
            weights = class_weights(embedder.texts, data.class_names, self.templates)
        else:
            try:
                weights, embeddings = _in_label_space(space, data, embeddings)
            except InputError as error:
                print(f"zero-shot is left out: {error}", file=sys.stderr)
                return {}
            result["zero_shot_unknown_classes"] = float((~weights.any(dim=1)).sum())
        rank = zero_shot_rank(embeddings, labels, weights)
        for k in (1, 5):
            result |= _record(f"zero_shot_top{k}", (rank <= k).double(), labels)
        return result


@torch.inference_mode()
def _in_label_space(space: LabelSpace, data: EvaluationSet, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of the classes `[C, V]` and of images `[N, V]`, both on the CPU."""
    described = data.descriptions if space.config.descriptions else {}
    names = zip(data.classes, data.class_names, strict=True)
    weights = space.encode_text([label_text(name, described.get(entity)) for entity, name in names])
    return weights.cpu(), space.map_image(embeddings.to(weights.device)).cpu()


class ImageText(Evaluator):
    """Retrieval between images and the captions of their entities; the table has the mean of both ways.

    Args:
        k: numbers of results for recall@k.
    """

    measures = ("image_text_r1",)

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        self.k = tuple(sorted({1, *k}))

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> dict[str, float]:
        """Measure; empty without a text tower or captions."""
        if not embedder.has_text or not data.captions:
            return {}
        embeddings, labels = embedder.labelled(data)
        texts = embedder.texts([text for text, _ in data.captions])
        text_labels = data.labels([entity for _, entity in data.captions])
        recall = image_text_recall(embeddings, labels, texts, text_labels, k=self.k)
        result: dict[str, float] = {}
        for k in self.k:
            result |= _record(f"image_to_text_r{k}", recall.image_to_text[k], labels)
            result |= _record(f"text_to_image_r{k}", recall.text_to_image[k], text_labels)
        # both directions rest on the same images, so their errors may add up: an upper bound
        for part in ("", "_se"):
            both = result[f"image_to_text_r1{part}"] + result[f"text_to_image_r1{part}"]
            result[f"image_text_r1{part}"] = both / 2
        return result


def standard_evaluators() -> list[Evaluator]:
    """What `mofi evaluate` runs unless told otherwise."""
    return [Retrieval(), KNN(), ZeroShot(), ImageText()]
