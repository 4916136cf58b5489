"""A source of real pairs with truth, and how its splits are listed."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mofi_lightning.sources.base import Entity, Pair, Source


class SliceSource(Source):
    """The committed emoji slice as a source; `broken` is a split that ends with an error."""

    splits = ("train", "validation", "test")

    def __init__(self, folder: Path, broken: str = "") -> None:
        self.folder, self.broken = folder, broken
        self.asked: list[str] = []

    def pairs(self, split: str) -> Iterator[Pair]:
        self.asked.append(split)
        truth = {row["key"]: row for row in pq.read_table(self.folder / "truth.parquet").to_pylist()}
        for row in pq.read_table(self.folder / f"{split}.parquet").to_pylist():
            shown = truth[row["key"]]
            entity = Entity(shown["entity"], shown["name"], description=shown["description"])
            yield Pair(row["key"], row["image"], row["text"], entity)
        if split == self.broken:
            raise ConnectionError(split)

    def entities(self) -> Iterator[Entity]:
        for row in pq.read_table(self.folder / "knowledge_base.parquet").to_pylist():
            yield Entity(row["id"], row["name"], tuple(row["aliases"]), row["description"])


@pytest.fixture
def slice_source(emoji_slice: Path) -> SliceSource:
    return SliceSource(emoji_slice)
