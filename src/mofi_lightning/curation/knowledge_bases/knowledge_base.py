"""The knowledge base: entities, their names, and which entities a name may mean; on disk, memory-mapped.

A knowledge base is a folder:

- `entities.arrow`: id, name, aliases, description, popularity, types (`entity_table`);
- `popularity.npy`: the popularity once more, as one array;
- `ids/`: which row has an id (`id_index`);
- `aliases/`: the normalised names (`alias_index`);
- `bags/`: the words of each entity's names and description, as numbers (`word_bags`);
- `knowledge_base.json`: `{"schema": 1, "entities": n, "fingerprint": "...", "skipped": {reason: n}}`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mofi_lightning.curation.knowledge_bases.admission import admitted
from mofi_lightning.curation.knowledge_bases.alias_index import AliasIndex, AliasIndexBuilder
from mofi_lightning.curation.knowledge_bases.base import Faults
from mofi_lightning.curation.knowledge_bases.entity_table import (
    EntityTable,
    leave_out,
    read_entities,
    write_entities,
)
from mofi_lightning.curation.knowledge_bases.external_sort import ArrayFile, mapped
from mofi_lightning.curation.knowledge_bases.id_index import IdIndex, IdIndexBuilder
from mofi_lightning.curation.knowledge_bases.names import normalise, words
from mofi_lightning.curation.knowledge_bases.word_bags import WordBags, WordBagsBuilder
from mofi_lightning.data.file_locks import claimed
from mofi_lightning.data.writing import refuse_existing
from mofi_lightning.progress import track
from mofi_lightning.sources.base import Entity
from mofi_lightning.types import InputError

FILE_NAME = "knowledge_base.json"
SCHEMA_VERSION = 1
# of the ids that occur twice, those that the record of faults names
_NAMED = 20
# values that wait in memory before they are written
_WAITING = 1 << 16

Rows = NDArray[np.int32]


class KnowledgeBase:
    """Entities in a folder, memory-mapped; a row number stands for an entity within curation.

    Pickled as its path: every process maps the files itself and shares their pages.

    Attributes:
        folder: where it is.
        fingerprint: 32 hexadecimal digits that name its content.
        skipped: what was left out when it was built: reason -> how often.
        aliases: the names, each with the entities it may mean.

    Raises:
        InputError: there is no knowledge base in `folder`, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = _about(folder)
        try:
            self.fingerprint: str = about["fingerprint"]
            self.skipped: dict[str, int] = about["skipped"]
            self._entities = EntityTable(folder / "entities.arrow")
            self._popularity = mapped(folder / "popularity.npy")
            self._ids = IdIndex(folder / "ids")
            self._bags = WordBags(folder / "bags")
            self.aliases = AliasIndex(folder / "aliases")
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            EOFError,
            RuntimeError,
            pa.ArrowException,
        ) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"knowledge base {folder} is damaged ({reason}); build it anew") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return KnowledgeBase, (self.folder,)

    def __len__(self) -> int:
        return len(self._entities)

    def __getitem__(self, row: int) -> Entity:
        """The entity at `row`, from 0."""
        return self._entities[row]

    def __iter__(self) -> Iterator[Entity]:
        """All entities, in the order of their rows."""
        return iter(self._entities)

    def ids(self, rows: Sequence[int] | Rows) -> list[str]:
        """The ids of the entities `rows`."""
        return self._entities.take("id", rows)

    def names(self, rows: Sequence[int] | Rows) -> list[str]:
        """The preferred names of the entities `rows`, as they are written."""
        return self._entities.take("name", rows)

    def descriptions(self, rows: Sequence[int] | Rows) -> list[str]:
        """The descriptions of the entities `rows`; empty where there is none."""
        return self._entities.take("description", rows)

    def types(self, rows: Sequence[int] | Rows) -> list[list[str]]:
        """The ids of what each of the entities `rows` is an instance of."""
        return self._entities.take("types", rows)

    def popularity(self, rows: Sequence[int] | Rows) -> NDArray[np.float32]:
        """The popularity of the entities `rows`, in the units of the knowledge base; 0 where unknown."""
        popularity: NDArray[np.float32] = self._popularity[np.asarray(rows, dtype=np.int64)]
        return popularity

    def row(self, id: str) -> int:
        """The row of the entity `id`; -1 if there is none."""
        return int(self.rows_of([id])[0])

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The rows of the entities `ids`, `[n]`; -1 where there is none."""
        rows = self._ids.find(ids)
        found = np.flatnonzero(rows >= 0)
        for place, id in zip(found.tolist(), self.ids(rows[found]), strict=True):
            if id != ids[place]:
                rows[place] = -1
        return rows

    @property
    def word_count(self) -> int:
        """Number of different words in names and descriptions."""
        return self._bags.word_count

    def word_numbers(self, words: Iterable[str]) -> list[int]:
        """The number of each of `words` (normalised), below `word_count`; -1 for a word no entity has."""
        return self._bags.word_numbers(words)

    def bag(self, row: int) -> Rows:
        """The numbers of the words of an entity: of its names and its description, ascending, each once."""
        return self._bags.bag(row)


def build_knowledge_base(
    entities: Iterable[Entity], folder: Path, faults: Faults | None = None, total: int | None = None
) -> KnowledgeBase:
    """Write `entities` as the knowledge base `folder`, which appears whole or not at all.

    The memory it takes is bounded, however many they are. What is admitted, and in what form, is
    told in `admission.admitted`; of entities with one id the first stays; a name of which nothing is left
    when it is normalised is no name that a text could have. All of this is counted.

    Args:
        entities: read once.
        folder: to make; a knowledge base that is there is replaced.
        faults: counts what is left out.
        total: number of entities, where it is known, for the progress bar.

    Raises:
        InputError: no entity is left, `folder` holds something else, or another process is writing it.
    """
    faults = Faults() if faults is None else faults
    if not (folder / FILE_NAME).is_file():
        refuse_existing(folder)
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    with claimed(place.with_name(f".{place.name}"), wait=False) as lock:
        if lock is None:
            raise InputError(f"another process is writing {folder}; wait for it, or choose another output")
        partial, old = (place.with_name(f".{place.name}.{state}") for state in ("partial", "old"))
        _restore(old, place)  # a build may have been killed while it replaced the knowledge base
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            _write_entities(track(entities, "reading entities", total), partial, faults)
            _write_names(partial, faults, folder)
            # aside, not away: a folder of which a part is removed is no knowledge base, nor free for one
            if place.exists():
                os.replace(place, old)
            os.replace(partial, place)
        except BaseException:
            _restore(old, place)
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return KnowledgeBase(folder)


def _restore(old: Path, place: Path) -> None:
    if old.exists() and not place.exists():
        os.replace(old, place)


def _write_entities(entities: Iterable[Entity], folder: Path, faults: Faults) -> None:
    """Write the table of the entities and the index of their ids, which finds those that come again."""
    table = folder / "entities.arrow"
    index = IdIndexBuilder(folder / "ids")
    for ids in write_entities(admitted(entities, faults), table):
        index.add(ids)
    repeated = index.write()
    if len(repeated):
        for id in EntityTable(table).take("id", repeated[:_NAMED]):
            faults.add("id occurs twice", f"entity {id}")
        faults.counts["id occurs twice"] = len(repeated)
        leave_out(repeated, table)


def _write_names(folder: Path, faults: Faults, output: Path) -> None:
    """Write what is made from the table: names, words, popularity, and the file that tells of it all."""
    aliases, bags = AliasIndexBuilder(folder / "aliases"), WordBagsBuilder(folder / "bags")
    digest = hashlib.blake2b(digest_size=16)
    total = len(EntityTable(folder / "entities.arrow"))
    popularity: list[float] = []
    with ArrayFile(folder / "popularity.npy", np.float32) as popularities:
        entities = track(read_entities(folder / "entities.arrow"), "indexing names", total)
        for row, entity in enumerate(entities):
            digest.update(repr(tuple(entity)).encode())
            found = set(words(entity.description))
            for position, name in enumerate((entity.name, *entity.aliases)):
                normalised = normalise(name)
                if normalised:
                    aliases.add(normalised, row, position == 0)
                    found.update(normalised.split())
                else:
                    faults.add("name of which normalising leaves nothing", f"entity {entity.id}", name)
            bags.add(found)
            popularity.append(entity.popularity)
            if len(popularity) == _WAITING or row == total - 1:
                popularities.append(np.array(popularity))
                popularity = []
    if not total:
        left_out = "".join(f"; {reason}: {count:,}" for reason, count in faults.counts.most_common(3))
        first = "".join(f" ({example})" for example in faults.examples[:1])
        raise InputError(f"no entity with an id and a name for the knowledge base {output}{left_out}{first}")
    aliases.write()
    bags.write()
    about = {
        "schema": SCHEMA_VERSION,
        "entities": total,
        "fingerprint": digest.hexdigest(),
        "skipped": dict(sorted(faults.counts.items())),
    }
    (folder / FILE_NAME).write_text(json.dumps(about, indent=2) + "\n")


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / FILE_NAME).read_text())
        schema = about["schema"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"no knowledge base in {folder}; `mofi kb build` makes one") from error
    if schema != SCHEMA_VERSION:
        raise InputError(f"knowledge base {folder} has schema {schema}, not {SCHEMA_VERSION}; build it anew")
    return about
