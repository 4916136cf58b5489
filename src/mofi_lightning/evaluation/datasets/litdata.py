"""Images-to-Entities data sets, as `mofi curate` and `mofi data build` write them."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.data.shards import CorruptRow, ShardReader, open_dataset
from mofi_lightning.data.storage import is_remote
from mofi_lightning.data.texts import entity_text
from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet, LazyImages
from mofi_lightning.evaluation.datasets.oddities import class_oddities
from mofi_lightning.types import InputError


class LitData(EvaluationData):
    """An Images-to-Entities data set in litdata shards, with names and descriptions of its vocabulary.

    A row shows the entity with its highest score, the first of equal ones. Rows without an entity are left
    out, and a note counts them. Entities of the vocabulary that no row shows are no candidates. Opening reads
    all rows, as the labels lie beside the images; each is checked against its checksum.

    Args:
        path: folder or URI (s3://, gs://, hf://) of the data set.

    Example:
        ```yaml
        tasks:
          held out:
            data:
              class_path: LitData
              init_args: {path: data/validation}
        ```
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        info = open_dataset(self.path)
        vocabulary = info.vocabulary
        if vocabulary is None:
            raise InputError(f"the rows of {self.path} carry no entities; `mofi curate` finds them")
        reader = ShardReader(info)
        rows, keys, classes, several = [], [], [], 0
        for number in range(len(reader)):
            try:
                row = reader[number]
            except CorruptRow as error:
                raise InputError(
                    f"{error}; `mofi data verify {self.path} --clean FOLDER` writes the intact rows"
                ) from error
            if row.entities:
                best = max(range(len(row.entities)), key=lambda i: (row.scores[i], -i))
                rows.append(number)
                keys.append(row.key)
                classes.append(row.entities[best])
                several += len(row.entities) > 1
        if not rows:
            raise InputError(f"no row of {self.path} has an entity; `mofi curate` finds them")
        unknown = [label for label in classes if not 0 <= label < len(vocabulary)]
        if unknown:
            raise InputError(
                f"{self.path} has the class id {unknown[0]} of {len(vocabulary)}; build it again"
            )
        shown = sorted(set(classes))
        ids = {label: vocabulary.ids[label] for label in shown}
        names = {ids[label]: vocabulary.names[label] for label in shown}
        descriptions = {ids[label]: text for label in shown if (text := vocabulary.descriptions[label])}
        entities = [ids[label] for label in classes]
        left_out = len(reader) - len(rows)
        notes = [
            *([f"{left_out:,} of {len(reader):,} rows have no entity and are left out"] if left_out else []),
            *(
                [f"{several:,} images show several entities; that of the highest score counts"]
                if several
                else []
            ),
        ]
        return EvaluationSet(
            name=_name(self.path),
            keys=keys,
            images=_ShardImages(reader, rows),
            entities=entities,
            names=names,
            descriptions=descriptions,
            captions=[
                (text, entity)
                for entity, name in names.items()
                for text in dict.fromkeys((name, entity_text(name, descriptions.get(entity, ""))))
            ],
            notes=(*notes, *class_oddities(entities, names)),
        )


class _ShardImages(LazyImages[int]):
    """Images of some rows of a data set."""

    def __init__(self, reader: ShardReader, rows: Sequence[int]) -> None:
        super().__init__(rows)
        self._reader = reader

    def read(self, place: int) -> bytes:
        return self._reader[place].image


def _name(path: str) -> str:
    from pathlib import Path

    return path.rstrip("/").rpartition("/")[2] if is_remote(path) else Path(path).resolve().name
