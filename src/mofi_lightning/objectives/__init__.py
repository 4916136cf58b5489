"""Objectives: from embeddings and labels to a loss; the names are lazy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Objective": "mofi_lightning.objectives.base",
    "ObjectiveFactory": "mofi_lightning.objectives.base",
    "CLIP": "mofi_lightning.objectives.contrastive",
    "EntitySoftmax": "mofi_lightning.objectives.entity_softmax",
    "DeViSE": "mofi_lightning.objectives.devise",
    "MultiTask": "mofi_lightning.objectives.multitask",
    "WeightSchedule": "mofi_lightning.objectives.multitask",
    "MOFI": "mofi_lightning.objectives.mofi",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mofi_lightning.objectives' has no attribute {name!r}")


if TYPE_CHECKING:
    from mofi_lightning.objectives.base import Objective as Objective
    from mofi_lightning.objectives.base import ObjectiveFactory as ObjectiveFactory
    from mofi_lightning.objectives.contrastive import CLIP as CLIP
    from mofi_lightning.objectives.devise import DeViSE as DeViSE
    from mofi_lightning.objectives.entity_softmax import EntitySoftmax as EntitySoftmax
    from mofi_lightning.objectives.mofi import MOFI as MOFI
    from mofi_lightning.objectives.multitask import MultiTask as MultiTask
    from mofi_lightning.objectives.multitask import WeightSchedule as WeightSchedule
