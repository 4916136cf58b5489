"""Classification by linear models of the features before the projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mofi_lightning.evaluation.base import Evaluator, Measurement
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder, LabelledImages
from mofi_lightning.evaluation.measures.linear_classifier import LinearClassifier, class_recall
from mofi_lightning.evaluation.measures.linear_probe import LAMBDAS, MAX_ITERATIONS, fit_linear_probe
from mofi_lightning.evaluation.measures.probe_rows import too_faint, validation_rows
from mofi_lightning.evaluation.measures.ridge_probe import LAMBDAS as RIDGE_LAMBDAS
from mofi_lightning.evaluation.measures.ridge_probe import fit_ridge_probe
from mofi_lightning.types import InputError

_SHOWN = 5


class LinearProbe(Evaluator):
    """Logistic regression on frozen features, lambda searched on validation rows (CLIP's protocol).

    It learns from the data's `fit`; without one, from a fixed half of the images of each class, and is
    tested on the other half.

    Args:
        max_iterations: of L-BFGS, a fit.
    """

    task = "linear_probe"
    measures = ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall")

    def __init__(self, max_iterations: int = MAX_ITERATIONS) -> None:
        self.max_iterations = max_iterations

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped where no class has images enough to learn, validate and test."""
        rows = _rows(embedder, data)
        if isinstance(rows, str):
            return Measurement(skipped=rows)
        if not validation_rows(rows.labels.sort().values).any():
            return Measurement(
                skipped="no class has two images to learn from, one of them to choose lambda on; "
                "the ridge probe needs one"
            )
        name = embedder.description
        fit = fit_linear_probe(
            rows.features,
            rows.labels,
            max_iterations=self.max_iterations,
            title=name and f"{name}: linear probe",
        )
        values = {"lp_lambda": fit.penalty, "lp_validation_acc1": fit.trials[fit.penalty].accuracy}
        notes = _edge("linear probe", rows, fit.penalty, LAMBDAS)
        if not fit.converged:
            notes += (f"linear probe: L-BFGS stopped at {fit.iterations} iterations, short of the minimum",)
        return _measurement("lp", rows, data, fit.classifier, values, notes)


class RidgeProbe(Evaluator):
    """Least squares on frozen features in closed form, lambda by exact leave-one-out; a fast linear probe.

    It learns from and is tested on the same images as `LinearProbe`.
    """

    task = "ridge_probe"
    measures = ("ridge_acc1", "ridge_acc5", "ridge_mean_per_class_recall")

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped where no class has images enough to learn and test."""
        rows = _rows(embedder, data)
        if isinstance(rows, str):
            return Measurement(skipped=rows)
        fit = fit_ridge_probe(rows.features, rows.labels)
        notes = _edge("ridge probe", rows, fit.penalty, RIDGE_LAMBDAS)
        return _measurement("ridge", rows, data, fit.classifier, {"ridge_lambda": fit.penalty}, notes)


class _Rows(NamedTuple):
    """What a probe learns from, and the images; `tested` are rows of these."""

    features: Tensor
    labels: Tensor
    images: LabelledImages
    tested: Tensor
    notes: tuple[str, ...]


def _rows(embedder: Embedder, data: EvaluationSet) -> _Rows | str:
    """The rows, or why there are none."""
    images, fit = embedder.labelled(data), embedder.fit(data)
    _refuse_broken(images, data, embedder)
    if fit is None:
        learned, notes = _half(images)
        if learned.all():
            return "no class has two images, one to learn from and one to test on"
        features, labels = images.features[learned], images.labels[learned]
        tested = (~learned).nonzero().flatten()
    else:
        assert data.fit is not None
        _refuse_broken(fit, data.fit, embedder)
        features, labels = fit.features, fit.labels
        tested, notes = torch.arange(len(images.labels)), ()
    learned_classes = labels.unique()
    if len(learned_classes) < 2:
        return f"a probe needs two classes to learn; the images are of {len(learned_classes)}"
    unseen = images.labels[tested].unique()
    unseen = unseen[~torch.isin(unseen, learned_classes)].tolist()
    if unseen:
        shown = ", ".join(data.class_names[label] for label in unseen[:_SHOWN])
        more = ", ..." if len(unseen) > _SHOWN else ""
        wrong = int(torch.isin(images.labels, torch.tensor(unseen)).sum())
        notes += (
            f"{len(unseen)} classes have no image to learn from ({shown}{more}); "
            f"their {wrong} images count as wrong",
        )
    return _Rows(features, labels, images, tested, notes)


def _half(images: LabelledImages) -> tuple[Tensor, tuple[str, ...]]:
    """Which images to learn from, bool `[M]`: a half of each class, rounded up, by a fixed draw of rows."""
    draw = torch.rand(images.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[
        images.rows
    ]
    order = draw.argsort(stable=True)
    order = order[images.labels[order].argsort(stable=True)]
    sizes = torch.unique_consecutive(images.labels[order], return_counts=True)[1]
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    learned = torch.zeros(len(order), dtype=torch.bool)
    learned[order] = place < ((sizes + 1) // 2).repeat_interleave(sizes)
    notes: tuple[str, ...] = (
        "the data has no training split: probes learn from a fixed half of the images of each class and are "
        "tested on the other half",
    )
    lonely = int((sizes == 1).sum())
    if lonely:
        notes += (f"{lonely} classes have one image, which probes learn from; no image tests them",)
    return learned, notes


def _refuse_broken(images: LabelledImages, data: EvaluationSet, embedder: Embedder) -> None:
    broken = images.rows[~images.features.isfinite().all(dim=1)].tolist()
    if broken:
        shown = ", ".join(str(data.keys[row]) for row in broken[:_SHOWN])
        raise InputError(
            f"{len(broken)} of {len(images.rows)} features of {embedder.description or 'the model'} are "
            f"not finite ({shown}{', ...' if len(broken) > _SHOWN else ''}); the model is broken, or these "
            "images break it"
        )


def _edge(probe: str, rows: _Rows, penalty: float, lambdas: tuple[float, ...]) -> tuple[str, ...]:
    faint = too_faint(rows.features, len(rows.labels.unique()), min(lambdas))
    if faint is not None:
        return (
            f"{probe}: features vary by {faint:.1g} only, so that no lambda tried lets them count; the "
            "model has collapsed, or its features need a larger scale",
        )
    if penalty not in (min(lambdas), max(lambdas)):
        return ()
    return (f"{probe}: the best lambda, {penalty:g}, is at the edge of those tried",)


def _measurement(
    prefix: str,
    rows: _Rows,
    data: EvaluationSet,
    classifier: LinearClassifier,
    values: Mapping[str, float],
    notes: tuple[str, ...],
) -> Measurement:
    labels = rows.images.labels[rows.tested]
    hits = classifier.hits(rows.images.features[rows.tested], labels)
    classes = len(classifier.classes)
    if classes <= 5:
        notes += (f"{prefix}_acc@k are left out at k = 5: there are {classes} classes to learn",)
    found = {
        "acc1": hits[1],
        **({"acc5": hits[5]} if classes > 5 else {}),
        "mean_per_class_recall": class_recall(hits[1], labels),
    }
    scores = {}
    for name, tested in found.items():
        spread = torch.full((len(rows.images.labels),), torch.nan, dtype=torch.float64)
        spread[rows.tested] = tested.cpu()
        scores[f"{prefix}_{name}"] = rows.images.scores(spread)
    counts = {
        f"{prefix}_learned_images": float(len(rows.labels)),
        f"{prefix}_tested_images": float(len(labels)),
    }
    return Measurement(scores, {**values, **counts}, rows.notes + notes)
