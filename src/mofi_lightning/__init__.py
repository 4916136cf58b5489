"""mofi_lightning: image representations from noisy entity-annotated images.

The public names are lazy, so that importing the package costs nothing until one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "mofi_lightning.encoders.dual_encoder",
    "DualEncoder": "mofi_lightning.encoders.dual_encoder",
    "DualEncoderConfig": "mofi_lightning.encoders.dual_encoder",
    "ImageEncoder": "mofi_lightning.encoders.base",
    "TextEncoder": "mofi_lightning.encoders.base",
    "BackboneLibrary": "mofi_lightning.encoders.base",
    "Preprocess": "mofi_lightning.encoders.preprocess",
    "decode": "mofi_lightning.encoders.decoding",
    "Source": "mofi_lightning.sources.base",
    "Pair": "mofi_lightning.sources.base",
    "Entity": "mofi_lightning.sources.base",
    "Objective": "mofi_lightning.objectives.base",
    "Batch": "mofi_lightning.types",
    "Tokens": "mofi_lightning.types",
    "Embeddings": "mofi_lightning.types",
    "ObjectiveSpec": "mofi_lightning.types",
    "ObjectiveOutput": "mofi_lightning.types",
    "InputError": "mofi_lightning.types",
    "I2EDataModule": "mofi_lightning.data.datamodule",
    "PretrainingModule": "mofi_lightning.training.module",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mofi_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


if TYPE_CHECKING:
    from mofi_lightning.data.datamodule import I2EDataModule as I2EDataModule
    from mofi_lightning.encoders.base import BackboneLibrary as BackboneLibrary
    from mofi_lightning.encoders.base import ImageEncoder as ImageEncoder
    from mofi_lightning.encoders.base import TextEncoder as TextEncoder
    from mofi_lightning.encoders.decoding import decode as decode
    from mofi_lightning.encoders.dual_encoder import DualEncoder as DualEncoder
    from mofi_lightning.encoders.dual_encoder import DualEncoderConfig as DualEncoderConfig
    from mofi_lightning.encoders.dual_encoder import load as load
    from mofi_lightning.encoders.preprocess import Preprocess as Preprocess
    from mofi_lightning.objectives.base import Objective as Objective
    from mofi_lightning.sources.base import Entity as Entity
    from mofi_lightning.sources.base import Pair as Pair
    from mofi_lightning.sources.base import Source as Source
    from mofi_lightning.training.module import PretrainingModule as PretrainingModule
    from mofi_lightning.types import Batch as Batch
    from mofi_lightning.types import Embeddings as Embeddings
    from mofi_lightning.types import InputError as InputError
    from mofi_lightning.types import ObjectiveOutput as ObjectiveOutput
    from mofi_lightning.types import ObjectiveSpec as ObjectiveSpec
    from mofi_lightning.types import Tokens as Tokens
