"""What an objective needs, against what data and model bring: checked once, before training starts."""

from __future__ import annotations

from collections.abc import Mapping

from mofi_lightning.encoders.dual_encoder import DualEncoder
from mofi_lightning.objectives.base import Objective
from mofi_lightning.types import InputError


def check_requirements(
    objective: Objective, model: DualEncoder, has_teacher: bool, sources: Mapping[str, frozenset[str]]
) -> None:
    """Refuse an objective that needs what neither the model nor any source carries.

    Args:
        objective: whose `requires` is checked.
        model: with or without a text tower.
        has_teacher: whether `model.teacher` is set.
        sources: the fields of the batches, by source.

    Raises:
        InputError: something is missing, or there is a teacher that nothing learns from.
    """
    name = type(objective).__name__
    carried = frozenset().union(*sources.values()) | {"image_tokens"}
    if model.text is None:
        carried -= {"text"}
    elif "text" in carried:
        carried |= {"text_tokens"}
    if has_teacher:
        carried |= {"teacher"}
        if "teacher" not in objective.requires:
            raise InputError(f"model.teacher is set but objective {name!r} learns from none; leave it out")
    for field in sorted(objective.requires - carried):
        listing = "; ".join(f"{source}: {', '.join(sorted(fields))}" for source, fields in sources.items())
        way_out = f"which no source carries ({listing})"
        if field.startswith("text") and model.text is None:
            way_out = "but the model has no text tower; set model.encoder.text"
        if field == "teacher":
            way_out = "but there is none; set model.teacher.image"
        raise InputError(f"objective {name!r} needs {field!r}, {way_out}")
