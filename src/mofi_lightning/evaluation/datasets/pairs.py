"""A split of a pairs folder, with the truth that `mofi pairs` wrote beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mofi_lightning.data.texts import entity_text
from mofi_lightning.evaluation.base import EvaluationData
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.datasets.oddities import class_oddities
from mofi_lightning.sources.tables import KINDS, Kind, check_table, iterate
from mofi_lightning.types import InputError

_BATCH_ROWS = 256


class PairsFile(EvaluationData):
    """A split of a pairs folder, with labels and names from the `truth.parquet` beside it.

    Images that the truth does not know are left out, and a note counts them. The images are kept in memory.

    Args:
        path: the parquet of the split, such as `pairs/test.parquet`.

    Example:
        ```yaml
        tasks:
          emoji:
            data:
              class_path: PairsFile
              init_args: {path: pairs/test.parquet}
        ```
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def open(self) -> EvaluationSet:
        """See `EvaluationData`."""
        path, truth = self.path, self.path.parent / "truth.parquet"
        if not path.is_file():
            raise InputError(f"no pairs file at {path}; `mofi pairs` writes one a split")
        if not truth.is_file():
            raise InputError(
                f"{truth} is missing: it says what the images show; `mofi pairs` writes it where the "
                "source knows"
            )
        by_key = {
            key: (entity, name, description)
            for key, shown_in, entity, name, description in rows(
                truth, "truth file", "key", "split", "entity", "name", "description"
            )
            if shown_in == path.stem and entity is not None
        }
        pairs = [(key, image or b"") for key, image in rows(path, "pairs file", "key", "image")]
        labelled = [pair for pair in pairs if pair[0] in by_key]
        if not labelled:
            raise InputError(f"{truth} says of no image of {path} what it shows; are both of the same run?")
        keys, images = zip(*labelled, strict=True)
        known = {entity: (name, description) for entity, name, description in map(by_key.__getitem__, keys)}
        captions = [
            (text, entity)
            for entity, (name, description) in known.items()
            for text in dict.fromkeys((name, entity_text(name, description)))
        ]
        entities = [by_key[key][0] for key in keys]
        names = {entity: name for entity, (name, _) in known.items()}
        left_out = len(pairs) - len(labelled)
        note = f"{left_out:,} of {len(pairs):,} images are left out: {truth.name} says nothing of them"
        return EvaluationSet(
            name=f"{path.parent.name}/{path.stem}",
            keys=keys,
            images=images,
            entities=entities,
            names=names,
            descriptions={entity: description for entity, (_, description) in known.items() if description},
            captions=captions,
            notes=(*((note,) if left_out else ()), *class_oddities(entities, names)),
        )


def rows(path: Path, title: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The checked rows of a file of a pairs folder; here keys need only match, so integers will do."""
    check_table(path, title, {name: KINDS[name] for name in columns} | {"key": Kind.ANY_KEY})
    for batch in iterate(path, columns, _BATCH_ROWS):
        yield from zip(*batch, strict=True)
