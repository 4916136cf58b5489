"""Entity tables that go on in another run, whose entities may be more, fewer or in another order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from mofi_lightning.data.vocabulary import FILE_NAME, EntityVocabulary
from mofi_lightning.encoders import checkpoint
from mofi_lightning.objectives.entity_softmax import EntitySoftmax
from mofi_lightning.types import InputError

if TYPE_CHECKING:
    from mofi_lightning.objectives.base import Objective

_TABLE, _MOMENT = "table", "second_moment"


def grow_tables(objective: Objective, path: Path, vocabulary: EntityVocabulary | None) -> list[str]:
    """Move rows of a checkpoint's entity tables, and their second moments, into `objective`, by entity id.

    A table goes on in the one of the same name or, where both sides have but one, in that. Entities that are
    new keep the start that their rows have. Of the checkpoint one piece is in memory at a time; each rank
    keeps the rows that it holds.

    Args:
        objective: not sharded yet; its tables receive the rows.
        path: a checkpoint; folders of models and runs hold no table, and nothing is done.
        vocabulary: of the data set.

    Returns:
        A line for each table of `objective`: what was moved, or why nothing was.

    Raises:
        InputError: the vocabulary of the checkpoint's run is nowhere near it.
    """
    tables = {
        ".".join(["objective", *filter(None, [name])]): module
        for name, module in objective.named_modules()
        if isinstance(module, EntitySoftmax)
    }
    if not tables or vocabulary is None or not _is_checkpoint(path):
        return []
    shapes = checkpoint.tensor_shapes(path)
    stored = [
        name.removesuffix(f".{_TABLE}")
        for name in shapes
        if name.endswith(f".{_TABLE}") and f"{name.removesuffix(_TABLE)}{_MOMENT}" in shapes
    ]
    position: Tensor | None = None
    lines = []
    for name, table in tables.items():
        title = "entity table" if len(tables) == 1 else f"entity table {name}"
        source = name if name in stored else stored[0] if len(stored) == len(tables) == 1 else None
        shape = shapes.get(f"{source}.{_TABLE}", ())
        if source is None:
            there = f"the checkpoint has {', '.join(stored)}" if stored else "the checkpoint has none"
            lines.append(f"{title} keeps its start: {there}")
        elif shape[1:] != table.table.shape[1:]:
            own = [table.num_classes, *table.table.shape[1:]]
            lines.append(f"{title} of another shape, keeps its start: {list(shape)} for {own}")
        else:
            if position is None:
                position = _positions(stored_vocabulary(path, vocabulary), vocabulary)
            _move(path, source, table, position)
            lines.append(f"{title}: {_moved(table, position)}")
    return lines


def stored_vocabulary(path: Path, vocabulary: EntityVocabulary) -> EntityVocabulary:
    """The vocabulary with which a checkpoint's run was trained: `vocabulary` if it is that one.

    Raises:
        InputError: it is another one, which lies neither beside the checkpoint nor in its run's folder.
    """
    fingerprint = checkpoint.read_meta(path)["vocabulary"]["fingerprint"]
    if vocabulary.fingerprint == fingerprint:
        return vocabulary
    for folder in (path.absolute().parent, *path.absolute().parent.parents[:2]):
        if (folder / FILE_NAME).is_file():
            found = EntityVocabulary.load(folder / FILE_NAME)
            if found.fingerprint == fingerprint:
                return found
    raise InputError(
        f"init_from {str(path)!r} has an entity table but {FILE_NAME} of its run (vocabulary {fingerprint}) "
        "lies neither beside it nor in the folders above; copy it there, or give a model folder to take the "
        "encoders alone"
    )


def _is_checkpoint(path: Path) -> bool:
    path = checkpoint.model_path(path)
    return path.is_file() or (not (path / checkpoint.CONFIG_FILE).is_file() and checkpoint.is_complete(path))


def _positions(old: EntityVocabulary, new: EntityVocabulary) -> Tensor:
    """Where each entity of `old` stands in `new`, -1 where it does not: int64 `[C]` of `old`."""
    if old is new:
        return torch.arange(len(new))
    ids = [pa.array(list(vocabulary.ids), pa.large_string()) for vocabulary in (old, new)]
    found = pc.fill_null(pc.index_in(ids[0], value_set=ids[1]), -1)
    return torch.tensor(found.to_numpy(zero_copy_only=False), dtype=torch.int64)


@torch.no_grad()
def _move(path: Path, source: str, table: EntitySoftmax, position: Tensor) -> None:
    own = table.own_rows()
    for name in (_TABLE, _MOMENT):
        buffer = getattr(table, name)
        for first, rows in checkpoint.read_rows(path, f"{source}.{name}"):
            target = position[first : first + len(rows)] - own.start
            held = (target >= 0) & (target < len(own))
            buffer[target[held]] = rows[held].to(buffer)


def _moved(table: EntitySoftmax, position: Tensor) -> str:
    """What `_move` did, the same on every rank."""
    moved = int((position >= 0).sum())
    new = table.num_classes - moved
    start = "from vectors" if table.label_vectors is not None else "at random"
    parts = [f"{moved:,} of {table.num_classes:,} rows by entity id"]
    if new:
        parts.append(f"{new:,} new ({start})")
    if left := len(position) - moved:
        parts.append(f"{left:,} of the checkpoint left out")
    return ", ".join(parts)
