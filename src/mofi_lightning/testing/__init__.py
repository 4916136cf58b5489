"""For authors of plugins: the kit that checks objectives and encoders, synthetic data, warm processes.

The names are lazy: the checks import torch but not Lightning, which the synthetic datamodule needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "EncoderReport": "mofi_lightning.testing.encoder_check",
    "check_encoder": "mofi_lightning.testing.encoder_check",
    "ObjectiveReport": "mofi_lightning.testing.objective_check",
    "check_objective": "mofi_lightning.testing.objective_check",
    "GlooPool": "mofi_lightning.testing.processes",
    "shared_processes": "mofi_lightning.testing.processes",
    "SyntheticDataModule": "mofi_lightning.testing.synthetic",
    "synthetic_vocabulary": "mofi_lightning.testing.batches",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mofi_lightning.testing' has no attribute {name!r}")


if TYPE_CHECKING:
    from mofi_lightning.testing.batches import synthetic_vocabulary as synthetic_vocabulary
    from mofi_lightning.testing.encoder_check import EncoderReport as EncoderReport
    from mofi_lightning.testing.encoder_check import check_encoder as check_encoder
    from mofi_lightning.testing.objective_check import ObjectiveReport as ObjectiveReport
    from mofi_lightning.testing.objective_check import check_objective as check_objective
    from mofi_lightning.testing.processes import GlooPool as GlooPool
    from mofi_lightning.testing.processes import shared_processes as shared_processes
    from mofi_lightning.testing.synthetic import SyntheticDataModule as SyntheticDataModule
