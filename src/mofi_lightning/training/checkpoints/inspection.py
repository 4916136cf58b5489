"""What is in a checkpoint, from its index and its description alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from mofi_lightning.encoders.checkpoint import CHECKPOINT_KEY, CONFIG_FILE, check, checkpoint_at
from mofi_lightning.encoders.checkpoint_format import (
    INDEX,
    META,
    STATE,
    load_safely,
    read_index,
    read_meta,
)
from mofi_lightning.training.checkpoints.folders import latest_checkpoint
from mofi_lightning.types import InputError

_RANK = re.compile(r"__(\d+)_\d+\.distcp$")
PARTS = (
    "image tower",
    "text tower",
    "objective",
    "entity table",
    "average",
    "teacher",
    "optimizer state",
    "other",
)


@dataclass
class Part:
    """Tensors of one part of a checkpoint: how many values, how many bytes, and of which types."""

    values: int = 0
    bytes: int = 0
    types: set[str] = field(default_factory=set)

    def add(self, values: int, dtype: torch.dtype) -> None:
        """Count one tensor."""
        self.values += values
        self.bytes += values * dtype.itemsize
        self.types.add(str(dtype).removeprefix("torch."))


@dataclass
class Description:
    """What `mofi checkpoint inspect` shows.

    Attributes:
        path: of the checkpoint that was found.
        written: when it was completed.
        ranks: whose files are in the folder; None for a consolidated file.
        meta: what the checkpoint says of itself, in plain values.
        parts: by name, in the order of `PARTS`, those that are there.
        partial: paths beside it whose writing was cut off.
    """

    path: Path
    written: datetime
    ranks: int | None
    meta: Mapping[str, Any]
    parts: dict[str, Part]
    partial: list[Path]


def describe(path: Path) -> Description:
    """Look into the checkpoint at `path`, or into the newest one of the run's folder `path`.

    Raises:
        InputError: there is none, it is incomplete or damaged, or it cannot be read safely.
    """
    found = find(path)
    meta = read_meta(found)
    parts = {name: Part() for name in PARTS}
    for name, values, dtype in _tensors(found):
        parts[part_of(name)].add(values, dtype)
    last_written = found / META if found.is_dir() else found
    return Description(
        found,
        datetime.fromtimestamp(last_written.stat().st_mtime),
        _ranks(found) if found.is_dir() else None,
        meta,
        {name: part for name, part in parts.items() if part.values},
        sorted(found.parent.glob("*.partial")),
    )


def find(path: Path) -> Path:
    """The checkpoint that is meant by `path`, checked.

    Args:
        path: a run's folder, its `checkpoints`, a checkpoint's folder or a consolidated file.

    Raises:
        InputError: there is none.
    """
    path = checkpoint_at(path)
    if path.is_dir() and not (path / INDEX).exists() and path.suffix not in (".ckpt", ".partial"):
        root = path.parent if path.name == "checkpoints" else path
        newest = latest_checkpoint(root)
        if newest is None:
            if (path / CONFIG_FILE).is_file():
                raise InputError(f"{path} is a model; checkpoints are in {path.parent / 'checkpoints'}")
            cut = sorted((root / "checkpoints").glob("*.partial"))
            but = f"; {cut[-1]} was cut off while it was written" if cut else ""
            raise InputError(f"there is no complete checkpoint in {root / 'checkpoints'}{but}")
        path = newest
    if path.suffix == ".partial" and path.exists():
        raise InputError(
            f"{path} was cut off while it was written and cannot be used; `mofi checkpoint inspect "
            f"{path.parent}` shows the newest complete checkpoint beside it"
        )
    check(path)
    if path.is_dir():
        for place in (read_index(path).storage_data or {}).values():
            file = path / place.relative_path
            if not file.is_file() or file.stat().st_size < place.offset + place.length:
                raise InputError(f"checkpoint {path} is damaged: {file.name} is missing or cut short")
    return path


def part_of(name: str) -> str:
    """Which of `PARTS` a tensor of a checkpoint belongs to, by its key in the folder."""
    if name.startswith("optimizer_"):
        return "optimizer state"
    name = name.removeprefix(STATE)
    for prefix, part in (
        ("model.image.", "image tower"),
        ("model.text.", "text tower"),
        ("average.", "average"),
        ("teacher.", "teacher"),
    ):
        if name.startswith(prefix):
            return part
    if not name.startswith("objective."):
        return "other"
    return "entity table" if name.endswith((".table", ".second_moment")) else "objective"


def _tensors(path: Path) -> Iterator[tuple[str, int, torch.dtype]]:
    """Key, number of values and type of each tensor of a checkpoint, none of which is read."""
    if path.is_file():
        for name, tensor in load_safely(path).get("state_dict", {}).items():
            if isinstance(tensor, Tensor):
                yield STATE + name, tensor.numel(), tensor.dtype
        return
    for key, entry in read_index(path).state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            yield key, prod(entry.size), entry.properties.dtype
        else:
            assert isinstance(entry, BytesStorageMetadata)


def _ranks(folder: Path) -> int:
    """How many processes have written a file; of copies of a parameter one writes."""
    stored = (read_index(folder).storage_data or {}).values()
    return len({match[1] for place in stored if (match := _RANK.search(place.relative_path))})


def print_description(found: Description) -> None:
    """Print two tables: what the checkpoint is, and how large its parts are."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in _facts(found):
        facts.add_row(name, escape(value))
    parts = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("part", "values", "bytes", "type"):
        parts.add_column(column, justify="left" if column in ("part", "type") else "right")
    for name, part in found.parts.items():
        parts.add_row(name, f"{part.values:,}", _size(part.bytes), ", ".join(sorted(part.types)))
    total = sum(part.bytes for part in found.parts.values())
    parts.add_row("[bold]all[/]", "", f"[bold]{_size(total)}[/]", "")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(facts, "", parts, sep="\n")


def _facts(found: Description) -> Iterator[tuple[str, str]]:
    meta = found.meta
    config = meta[CHECKPOINT_KEY]["config"]
    run = meta.get("run", {})
    yield "checkpoint", f"{found.path}, complete, of {found.written:%Y-%m-%d %H:%M:%S}"
    yield "step", f"{meta.get('global_step', 0):,}"
    if found.ranks is None:
        yield "written by", "mofi checkpoint consolidate: for load and model.init_from, not to be resumed"
    else:
        processes = run.get("processes", found.ranks)
        yield "written by", f"{processes} process{'es' if processes > 1 else ''}"
    yield "image encoder", str(config.get("image"))
    text = config.get("text")
    yield (
        "text encoder",
        "none" if text is None else f"width {text.get('width')}, {text.get('layers')} layers",
    )
    yield "embedding", f"{config.get('embed_dim')} dimensions"
    yield "objective", str(run.get("objective", "not recorded"))
    yield "precision", str(run.get("precision", "not recorded"))
    yield "entities", f"{meta.get('vocabulary', {}).get('entities', 0):,}"
    rates = [rate for schedule in meta.get("lr_schedulers", ()) for rate in schedule.get("_last_lr", ())]
    if rates:
        yield "learning rate", f"{max(rates):.3g}"
    if meta.get("freeze"):
        yield "frozen", ", ".join(meta["freeze"])
    for path in found.partial:
        yield "cut off", f"{path} (removed by the next checkpoint)"


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000  # type: ignore[assignment]
    return f"{count:,.2f} GB"
