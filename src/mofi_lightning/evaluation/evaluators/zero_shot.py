"""Classification by names."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.base import Evaluator, Measurement
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators.class_vectors import (
    in_label_space,
    in_prompts,
    unknown_classes,
    why_nothing_to_tell,
)
from mofi_lightning.evaluation.measures.linear_classifier import class_recall
from mofi_lightning.evaluation.measures.zero_shot import zero_shot_rank
from mofi_lightning.evaluation.templates import template_list
from mofi_lightning.types import InputError


class ZeroShot(Evaluator):
    """Classification by the names of all entities of the set.

    A model with a text tower embeds them in prompts. One with a label space only (DeViSE) is asked there:
    mapped images against vectors of the names, with descriptions if its label vectors are of both. If the
    text model that made these is missing, the measure is skipped. A class that it knows no word of does not
    compete, and its images are wrong. acc5 is left out where no more than 5 classes compete.

    Args:
        templates: prompts for data without prompts of its own: a list that comes with this package
            (`entity_5`, `openai_imagenet_80`, `openai_simple_7`), a file with one a line, or the prompts
            themselves, with `{}` where the name goes.
    """

    task = "zeroshot_classification"
    measures = ("acc1", "acc5", "mean_per_class_recall")

    def __init__(self, templates: str | Sequence[str] = "entity_5") -> None:
        self.templates = template_list(templates)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped without names, with one class, or without text tower or label space."""
        space = getattr(embedder.model, "label_space", None)
        if reason := why_nothing_to_tell(data):
            return Measurement(skipped=reason)
        images = embedder.labelled(data)
        if embedder.has_text:
            vectors = in_prompts(embedder, data, images.embeddings, self.templates)
        elif space is not None:
            try:
                vectors = in_label_space(space, data, images.embeddings)
            except InputError as error:
                return Measurement(skipped=str(error))
        else:
            return Measurement(skipped="the model has no text tower")
        unknown = unknown_classes(vectors.classes)
        candidates = len(data.classes) - len(unknown)
        if candidates < 2:
            return Measurement(skipped=f"{candidates} of {len(data.classes)} classes can be embedded")
        notes = list(vectors.notes)
        rank = zero_shot_rank(vectors.images, images.labels, vectors.classes)
        correct = {k: (rank <= k).double() for k in (1, 5)}
        scores = {"acc1": images.scores(correct[1])}
        if candidates > 5:
            scores["acc5"] = images.scores(correct[5])
        else:
            notes.append(f"acc5 says nothing of {candidates} classes")
        scores["mean_per_class_recall"] = images.scores(class_recall(correct[1], images.labels))
        shown = len(images.labels.unique())
        if shown < len(data.classes):
            notes.append(
                f"mean_per_class_recall is over the {shown} of {len(data.classes)} classes with images"
            )
        values = {} if embedder.has_text else {"zero_shot_unknown_classes": float(len(unknown))}
        return Measurement(scores, values, tuple(notes))
