"""The counts of a curation: what stands after every step, as JSON and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Rows = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Step:
    """What stands after one step of curation.

    Attributes:
        step: its name.
        rows: images that can be read.
        labels: labels, that is (image, entity) pairs.
        entities: different entities among them.
        coverage: share of all pairs that have a label.
        precision: share of the labels that are what the image shows; None where that is unknown.
        recall: correct labels over the pairs whose text names what the image shows; None where unknown.
    """

    step: str
    rows: int
    labels: int
    entities: int
    coverage: float
    precision: float | None = None
    recall: float | None = None


class Tally:
    """Counts the labels of one step part by part; the tallies of several parts can be merged.

    It holds four numbers and one byte an entity, however many labels it counts.

    Args:
        name: of the step.
        entities: number of entities in the knowledge base.
    """

    def __init__(self, name: str, entities: int) -> None:
        self.name = name
        self._labels = self._images = self._correct = self._judged = 0
        self._seen = np.zeros(entities, dtype=np.bool_)

    def add(self, rows: Rows, entities: Rows, shown: Rows | None) -> None:
        """Count all N labels of one part, and judge them where it is known what its images show.

        Args:
            rows: the image of each label, its row in the part, `[N]`.
            entities: row of each label's entity in the knowledge base, `[N]`.
            shown: what the part's images show, as rows of the knowledge base, `[rows of the part]`; -1 where
                nobody knows, -2 for an entity outside the knowledge base. None if nothing is known of any.
        """
        self._labels += len(rows)
        self._images += len(np.unique(rows))
        self._seen[entities] = True
        if shown is not None:
            truth = shown[rows]
            self._correct += int((truth == entities).sum())
            self._judged += int((truth != -1).sum())

    def merge(self, other: Tally) -> None:
        """Count what `other` counted, of other parts of the same step."""
        self._labels += other._labels
        self._images += other._images
        self._correct += other._correct
        self._judged += other._judged
        self._seen |= other._seen

    def step(self, total: int, readable: int, named: int | None) -> Step:
        """The measures of all that was counted.

        Args:
            total: number of pairs.
            readable: number of images that can be read.
            named: number of pairs whose text names what the image shows; None where nobody knows.
        """
        return Step(
            self.name,
            readable,
            self._labels,
            int(self._seen.sum()),
            self._images / total if total else 0.0,
            self._correct / self._judged if self._judged else None,
            self._correct / named if named else None,
        )


@dataclass(frozen=True)
class Report:
    """A whole curation.

    Attributes:
        fingerprint: what the data set was made from.
        undecodable_images: number of images left out, by kind of fault.
        steps: in their order.
        removed: number of pairs that the filters removed, by name of the filter.
        threshold: the lowest score of a label; None without one.
        estimated_precision: of the labels, estimated from wrong images; None without an image check.
    """

    fingerprint: str
    undecodable_images: dict[str, int]
    steps: Sequence[Step]
    removed: dict[str, int] = field(default_factory=dict)
    threshold: float | None = None
    estimated_precision: float | None = None

    def save(self, path: Path) -> None:
        """Write the report as JSON; it appears whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(partial, path)

    def print(self) -> None:
        """Print the report as a table."""
        table = Table(
            "after", "readable", "labels", "entities", "precision", "recall", "coverage", title="curation"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for s in self.steps:
            shares = (
                "-" if share is None else f"{share:.3f}" for share in (s.precision, s.recall, s.coverage)
            )
            table.add_row(escape(s.step), f"{s.rows:,}", f"{s.labels:,}", f"{s.entities:,}", *shares)
        console = Console()
        console.print(table)
        for kind, count in (*self.removed.items(), *self.undecodable_images.items()):
            # names come from plugins and messages of decoders: no markup
            console.print(f"left out {count:,}: {kind}", markup=False)
        if self.threshold is not None:
            console.print(f"labels score {self.threshold:.3f} or more")
        if self.estimated_precision is not None:
            console.print(f"estimated precision {self.estimated_precision:.3f}")
