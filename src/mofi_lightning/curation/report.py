"""The counts of a curation: what stands after every step, as JSON and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mofi_lightning.curation.selection import Candidates, Mask
from mofi_lightning.curation.truth import Truth


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


@dataclass(frozen=True)
class Report:
    """A whole curation.

    Attributes:
        fingerprint: what the data set was made from.
        undecodable_images: number of images left out, by kind of fault.
        steps: in their order.
    """

    fingerprint: str
    undecodable_images: dict[str, int]
    steps: Sequence[Step]

    def save(self, path: Path) -> None:
        """Write the report as JSON; it appears whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(partial, path)

    def print(self) -> None:
        """Print the report as a table."""
        table = Table(
            "after", "images", "labels", "entities", "precision", "recall", "coverage", title="curation"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for s in self.steps:
            shares = (
                "-" if share is None else f"{share:.3f}" for share in (s.precision, s.recall, s.coverage)
            )
            table.add_row(s.step, f"{s.rows:,}", f"{s.labels:,}", f"{s.entities:,}", *shares)
        console = Console()
        console.print(table)
        for kind, count in self.undecodable_images.items():
            console.print(f"left out {count:,}: {kind}")


def measure(
    step: str, candidates: Candidates, kept: Mask, total: int, rows: int, truth: Truth | None
) -> Step:
    """Count, and with a truth judge, the candidates in the mask `kept`.

    Args:
        step: its name.
        candidates: N candidates.
        kept: `[N]`.
        total: number of pairs.
        rows: number of images that can be read.
        truth: what the images show, if known.
    """
    images, entities = candidates.rows[kept], candidates.entities[kept]
    coverage = len(np.unique(images)) / total
    precision = recall = None
    if truth is not None:
        shown = truth.shown[images]
        correct, judged = int((shown == entities).sum()), int((shown != -1).sum())
        precision = correct / judged if judged else None
        recall = correct / truth.named if truth.named else None
    return Step(step, rows, len(images), len(np.unique(entities)), coverage, precision, recall)
