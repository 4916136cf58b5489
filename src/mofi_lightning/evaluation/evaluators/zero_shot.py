"""Classification by names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mofi_lightning.encoders.label_encoders import label_text
from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.evaluation.base import Evaluator, Measurement
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.measures.zero_shot import TEMPLATES, class_weights, zero_shot_rank
from mofi_lightning.types import InputError


class ZeroShot(Evaluator):
    """Classification by the names of all entities of the set.

    A model with a text tower embeds them in prompts. One with a label space only (DeViSE) is asked there:
    mapped images against vectors of the names, with descriptions if its label vectors are of both. If the text
    model that made these is missing, the measure is skipped.

    Args:
        templates: prompts with `{}` where the name goes, for data without prompts of its own.
    """

    task = "zeroshot_classification"
    measures = ("acc1", "acc5")

    def __init__(self, templates: Sequence[str] = TEMPLATES) -> None:
        self.templates = tuple(templates)

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped without names, or without text tower or label space."""
        space = getattr(embedder.model, "label_space", None)
        if not data.names:
            return Measurement(skipped="the data has no names")
        if space is None and not embedder.has_text:
            return Measurement(skipped="the model has no text tower")
        images = embedder.labelled(data)
        values: dict[str, float] = {}
        if embedder.has_text:
            weights = class_weights(embedder.texts, data.class_names, data.templates or self.templates)
            vectors = images.embeddings
        else:
            assert space is not None
            try:
                weights, vectors = _in_label_space(space, data, images.embeddings)
            except InputError as error:
                return Measurement(skipped=str(error))
            values["zero_shot_unknown_classes"] = float((~weights.any(dim=1)).sum())
        rank = zero_shot_rank(vectors, images.labels, weights)
        return Measurement({f"acc{k}": images.scores((rank <= k).double()) for k in (1, 5)}, values)


@torch.inference_mode()
def _in_label_space(space: LabelSpace, data: EvaluationSet, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of the classes `[C, V]` and of images `[N, V]`, both on the CPU."""
    described = data.descriptions if space.config.descriptions else {}
    names = zip(data.classes, data.class_names, strict=True)
    weights = space.encode_text([label_text(name, described.get(entity)) for entity, name in names])
    return weights.cpu(), space.map_image(embeddings.to(weights.device)).cpu()
