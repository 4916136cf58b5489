"""MOFI's multi-task objective."""

from __future__ import annotations

from mofi_lightning.objectives.base import ObjectiveFactory
from mofi_lightning.objectives.contrastive import CLIP
from mofi_lightning.objectives.entity_softmax import EntitySoftmax
from mofi_lightning.objectives.multitask import MultiTask
from mofi_lightning.types import InputError, ObjectiveSpec


class MOFI(MultiTask):
    """`w * entity + (1 - w) * contrastive` on one image encoder (MOFI, arXiv 2306.07952).

    Args:
        spec: what the objectives are built from.
        entity_weight: w, 0..1.
        entity: the supervised objective.
        contrastive: the image-text objective.
    """

    def __init__(
        self,
        spec: ObjectiveSpec,
        entity_weight: float = 0.5,
        entity: ObjectiveFactory = EntitySoftmax,
        contrastive: ObjectiveFactory = CLIP,
    ) -> None:
        if not 0 <= entity_weight <= 1:
            raise InputError(f"entity_weight is {entity_weight}; give a share between 0 and 1")
        super().__init__(
            spec,
            {"entity": entity, "contrastive": contrastive},
            {"entity": entity_weight, "contrastive": 1 - entity_weight},
        )
