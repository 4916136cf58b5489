"""MOFI's multi-task objective."""

from __future__ import annotations

from dataclasses import replace

from mofi_lightning.objectives.base import ObjectiveFactory
from mofi_lightning.objectives.contrastive import CLIP
from mofi_lightning.objectives.entity_softmax import EntitySoftmax
from mofi_lightning.objectives.multitask import MultiTask, WeightSchedule
from mofi_lightning.types import InputError, ObjectiveSpec


class MOFI(MultiTask):
    """`w * entity + (1 - w) * contrastive` on one image encoder (MOFI, arXiv 2306.07952).

    Args:
        spec: what the objectives are built from.
        entity_weight: w, 0..1, a number or a schedule.
        entity: the supervised objective.
        contrastive: the image-text objective.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        entity_weight: float | WeightSchedule = 0.5,
        entity: ObjectiveFactory = EntitySoftmax,
        contrastive: ObjectiveFactory = CLIP,
    ) -> None:
        ends = (
            (entity_weight.start, entity_weight.end)
            if isinstance(entity_weight, WeightSchedule)
            else (entity_weight,)
        )
        if not all(0 <= end <= 1 for end in ends):
            raise InputError(f"entity_weight is {entity_weight}; give shares between 0 and 1")
        rest = (
            replace(entity_weight, start=1 - entity_weight.start, end=1 - entity_weight.end)
            if isinstance(entity_weight, WeightSchedule)
            else 1 - entity_weight
        )
        super().__init__(
            spec,
            {"entity": entity, "contrastive": contrastive},
            {"entity": entity_weight, "contrastive": rest},
        )
