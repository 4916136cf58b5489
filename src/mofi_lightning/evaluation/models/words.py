"""What `mofi evaluate` and `mofi embed` take as a model: a folder, a checkpoint, or raw pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mofi_lightning.encoders.dual_encoder import load
from mofi_lightning.evaluation.embedding.images import EmbeddingModel
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.types import InputError

PIXELS = "pixels"


@dataclass(frozen=True)
class NamedModel:
    """A model with the name under which results show it.

    Attributes:
        name: for tables.
        path: of its folder or checkpoint; None for raw pixels.
        run: folder of the training run, where it has one (`metrics.csv`, `summary.json`).
    """

    name: str
    path: Path | None
    run: Path | None

    def load(self) -> EmbeddingModel:
        """The model in eval mode, on the GPU if there is one."""
        if self.path is None:
            return RawPixels()
        return load(self.path).to("cuda" if torch.cuda.is_available() else "cpu")

    def content_hash(self) -> str:
        """Hash of the model's files."""
        return PIXELS if self.path is None else hash_files(self.path)

    @property
    def origin(self) -> str:
        """Where it came from, as CLIP_benchmark's `pretrained`."""
        return PIXELS if self.path is None else str(self.path)

    def training_seconds(self) -> float | None:
        """Training time in the run's `summary.json`."""
        summary = self.run / "summary.json" if self.run else None
        if summary is None or not summary.is_file():
            return None
        seconds = json.loads(summary.read_text()).get("seconds")
        return None if seconds is None else float(seconds)


def parse_models(words: list[str]) -> list[NamedModel]:
    """Models from `NAME=PATH` (model folder, checkpoint, or the folder of a run) or `pixels`.

    Raises:
        InputError: no model, a word without `=`, a name twice, nothing at the path.
    """
    if not words:
        raise InputError(f"no model to evaluate; give --model NAME=PATH ... or {PIXELS}")
    models = [parse_model(word) for word in words]
    names = [model.name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two models are called {twice!r}; give each NAME=PATH its own name")
    return models


def parse_model(word: str) -> NamedModel:
    """One model, see `parse_models`."""
    if word == PIXELS:
        return NamedModel(PIXELS, None, None)
    name, equals, rest = word.partition("=")
    if not (name and equals and rest):
        raise InputError(f"model {word!r} is neither NAME=PATH nor {PIXELS}")
    path = Path(rest)
    if not path.exists():
        raise InputError(
            f"model {name!r}: nothing is at {path}; give a model folder, a checkpoint or a run's folder"
        )
    if (path / "model" / "config.json").is_file():
        return NamedModel(name, path / "model", path)
    return NamedModel(name, path, path.parent)


def hash_files(path: Path) -> str:
    """Hash of the content of a file, or of the names and contents of all files below a folder."""
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
