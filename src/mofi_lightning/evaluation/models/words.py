"""What `mofi evaluate` and `mofi embed` take as a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from mofi_lightning import entry_points
from mofi_lightning.complaints import near
from mofi_lightning.encoders import checkpoint
from mofi_lightning.encoders.peers.loading import (
    MOFI_RELEASE,
    architecture_and_path,
    is_hub_id,
    load_model,
)
from mofi_lightning.encoders.peers.open_clip import PREFIX as OPEN_CLIP
from mofi_lightning.encoders.peers.open_clip import check_architecture
from mofi_lightning.evaluation.embedding.images import EmbeddingModel
from mofi_lightning.evaluation.models.backbone import (
    LIBRARY,
    BackboneModel,
    check_weights,
    is_backbone,
    load_backbone,
)
from mofi_lightning.evaluation.models.content import hash_files, hash_state
from mofi_lightning.evaluation.models.pixels import RawPixels
from mofi_lightning.types import InputError

PIXELS = "pixels"
_SUMMARY, _LOGS = "summary.json", "logs"
_LONGEST_NAME = 100
FORMS = (
    f"NAME=WHAT or WHAT, where WHAT is {PIXELS}, a model folder, a checkpoint, a run's folder, a Hugging "
    f"Face folder or hub id OWNER/NAME, {MOFI_RELEASE}FOLDER, {OPEN_CLIP}ARCHITECTURE=PATH, "
    "timm/ARCHITECTURE.TAG, timm/ARCHITECTURE=WEIGHTS or another backbone"
)


@dataclass(frozen=True)
class NamedModel:
    """A model with the name under which results show it.

    Attributes:
        name: for tables.
        origin: what was given for it; recorded as CLIP_benchmark's `pretrained`.
        path: of its file or folder; None where it comes from a package or a hub.
        run: folder of the training run, where it is in one (`logs`, `summary.json`).
    """

    name: str
    origin: str
    path: Path | None = None
    run: Path | None = None

    def load(self) -> EmbeddingModel:
        """The model in eval mode and fp32, on the GPU if there is one.

        Raises:
            InputError: it cannot be loaded.
        """
        if self.origin == PIXELS:
            return RawPixels()
        model: nn.Module = self._backbone() if is_backbone(self.origin) else load_model(self.origin)
        return cast(EmbeddingModel, model.float().to("cuda" if torch.cuda.is_available() else "cpu"))

    def content_hash(self) -> str:
        """Hash of all that decides what the model gives: its files, and the form in which they were given.

        Of a model of the hub it is that of the commit. A backbone without a file is loaded for it, and its
        weights are hashed.

        Raises:
            InputError: there is no such model, or it cannot be found out which one it is.
        """
        if self.origin == PIXELS:
            return PIXELS
        if self.path is not None:
            if self.origin.startswith(OPEN_CLIP):
                check_architecture(architecture_and_path(self.origin)[0])
            elif is_backbone(self.origin):
                check_weights(self.origin.partition("=")[0], self.path)
            return hash_files(checkpoint.model_path(self.path), _split(self.origin)[0])
        if is_backbone(self.origin):
            model = self._backbone()
            return hash_state(model, f"{self.origin} {model.preprocess}")
        commit = f"{self.origin} {_commit(self.origin)}"
        return hashlib.blake2b(commit.encode(), digest_size=16).hexdigest()

    def training_seconds(self) -> float | None:
        """Training time in the run's `summary.json`; None where there is none, or it is torn."""
        if self.run is None:
            return None
        try:
            return float(json.loads((self.run / _SUMMARY).read_text())["seconds"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _backbone(self) -> BackboneModel:
        return load_backbone(self.origin.partition("=")[0], self.path)


def parse_models(words: Sequence[str]) -> list[NamedModel]:
    """Several models, see `parse_model`.

    Raises:
        InputError: no model, one that is not there, or a name twice.
    """
    if not words:
        raise InputError(f"no model to evaluate; give --model {FORMS}")
    models = [parse_model(word) for word in words]
    names = [model.name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two models are called {twice!r}; write NAME=WHAT, each with a name of its own")
    return models


def parse_model(word: str) -> NamedModel:
    """A model from `NAME=WHAT`, or from `WHAT` alone, then called as its last part.

    A NAME has no slash and no colon.

    WHAT is one of

    - the folder of a `DualEncoder`, a checkpoint of `mofi fit`, or the folder of a training run;
    - a folder or hub id OWNER/NAME of Hugging Face's CLIP, SigLIP or another model of images and texts;
    - `hf_mofi:FOLDER`, such a folder with weights released by MOFI's authors, with their exact transform;
    - `open_clip:ARCHITECTURE=PATH`;
    - a backbone, `timm/ARCHITECTURE.TAG` with weights from the hub, `timm/ARCHITECTURE=WEIGHTS.safetensors`,
      or of any other library of `mofi backbones` that has weights; its features are its embeddings;
    - `pixels`, the raw image at 16 x 16.

    Models of the hub are looked up when they are loaded.

    Raises:
        InputError: it has none of these forms, or nothing is at its path.
    """
    name, equals, what = word.partition("=")
    if not equals or "/" in name or ":" in name:
        name, what = "", word
    if not what or (equals and not name and what != word):
        raise InputError(f"model {word!r} is not of the form {FORMS}")
    form, rest = _split(what)
    called = form.removesuffix("=").removeprefix(OPEN_CLIP) if "=" in form else rest
    name = name or Path(os.path.abspath(called)).name  # of `.` too; a link keeps its own name
    if not name or len(name) > _LONGEST_NAME:
        raise InputError(
            f"the name of model {_cut(word)!r} has {len(name)} characters; write NAME=WHAT, with a NAME of 1 "
            f"to {_LONGEST_NAME}"
        )
    if what == PIXELS or (is_backbone(what) and not form):
        return NamedModel(name, what)
    path = Path(rest)
    if path.exists():
        return NamedModel(name, what, path, _run_of(path))
    if what.startswith(OPEN_CLIP):
        architecture_and_path(what)
    if form:
        raise InputError(f"model {name!r}: no weights at {path}")
    if not is_hub_id(what):
        raise InputError(
            f"model {name!r}: nothing is at {path}{_meant(what)}; give a path, {PIXELS}, or another form of "
            "`mofi evaluate --help`"
        )
    return NamedModel(name, what)


def _run_of(path: Path) -> Path | None:
    """The folder of the run that made the model at `path`, if there is any trace of one."""
    path = path.resolve()
    places = [path]
    if path.name in ("model", "checkpoints"):
        places.append(path.parent)
    if path.parent.name == "checkpoints":
        places.append(path.parent.parent)
    return next((p for p in places if (p / _SUMMARY).is_file() or (p / _LOGS).is_dir()), None)


def _cut(word: str) -> str:
    return word if len(word) <= _LONGEST_NAME else f"{word[:40]}..."


def _split(what: str) -> tuple[str, str]:
    """How the files of a model are to be read, empty for those that say so themselves, and where they are."""
    if what.startswith(OPEN_CLIP) or is_backbone(what):
        form, equals, rest = what.partition("=")
        return (form + equals, rest) if equals else ("", what)
    rest = what.removeprefix(MOFI_RELEASE)
    return what[: len(what) - len(rest)], rest


def _meant(what: str) -> str:
    """A hint at the form that is spelt nearly as `what` begins."""
    prefixes = [f"{name}/" for name in entry_points.load_all(LIBRARY)]
    start, slash, _ = what.partition("/")
    return near(start + slash, [PIXELS, MOFI_RELEASE, OPEN_CLIP, *prefixes])


def _commit(hub_id: str) -> str:
    """The commit that a model of the hub is of, here or, if it can be reached, there."""
    import transformers

    try:
        config = transformers.utils.cached_file(hub_id, "config.json")
    except Exception as error:  # transformers and the hub's client each raise kinds of their own
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise InputError(
            f"no model at {hub_id}{_meant(hub_id)}: neither a folder nor on the Hugging Face hub ({reason})"
        ) from error
    return Path(str(config)).parent.name
