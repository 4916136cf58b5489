"""DeViSE's measures: flat and hierarchical, of seen and of unseen labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mofi_lightning.evaluation.base import Evaluator, Measurement, Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators.candidate_labels import Protocol, candidate_scores, protocols
from mofi_lightning.evaluation.evaluators.class_vectors import in_label_space, in_prompts, why_nothing_to_tell
from mofi_lightning.evaluation.templates import template_list
from mofi_lightning.types import InputError

HITS = (1, 2, 5, 10)
PRECISION = (2, 5, 10, 20)


class DeViSEZeroShot(Evaluator):
    """The measures of Frome et al. (NIPS 2013): hit@k, and hp@k where the data has a hierarchy.

    Candidates are all classes. Where the data says which were seen in training, images of the others are
    also measured against unseen labels only (`unseen_hit@k`), and against all (`generalized_hit@k`). A model
    with a label space is asked there, another by its text tower, with names in prompts.

    Args:
        hits: values of k of flat hit@k.
        precision: values of k of hierarchical precision@k.
        templates: prompts for a text tower, as those of `ZeroShot`.
    """

    task = "devise_zeroshot"
    measures = ("hit@1", "hit@5", "hp@5", "unseen_hit@5", "generalized_hit@5")

    def __init__(
        self,
        hits: Sequence[int] = HITS,
        precision: Sequence[int] = PRECISION,
        templates: str | Sequence[str] = "entity_5",
    ) -> None:
        self.hits = check_k(hits)
        self.precision = check_k(precision)
        self.templates = template_list(templates)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped without names, with one class, or without label space or text tower."""
        space = getattr(embedder.model, "label_space", None)
        if reason := why_nothing_to_tell(data):
            return Measurement(skipped=reason)
        if space is None and not embedder.has_text:
            return Measurement(skipped="the model has neither label space nor text tower")
        images = embedder.labelled(data)
        if space is None:
            vectors = in_prompts(embedder, data, images.embeddings, self.templates)
        else:
            try:
                vectors = in_label_space(space, data, images.embeddings)
            except InputError as error:
                return Measurement(skipped=str(error))
        everything = torch.ones(len(data.classes), dtype=torch.bool)
        unseen, notes = protocols(data, images)
        scores: dict[str, Scores] = {}
        for protocol in (Protocol("", everything, everything), *unseen):
            found, odd = candidate_scores(
                images, vectors.images, vectors.classes, data, protocol, self.hits, self.precision
            )
            scores |= found
            notes += odd
        return Measurement(scores, notes=(*vectors.notes, *notes))


def check_k(k: Sequence[int]) -> tuple[int, ...]:
    """Numbers of results, ascending, each once.

    Raises:
        InputError: one is not positive.
    """
    if any(n < 1 for n in k):
        raise InputError(f"{min(k)} results cannot be measured; give k of 1 or more")
    return tuple(sorted(set(k)))
