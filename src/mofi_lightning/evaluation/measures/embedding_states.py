"""Metrics of embeddings: states that concatenate over ranks."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors


class EmbeddingStates(Metric):
    """Base class of metrics that need all rows at once: they keep embeddings, never scores.

    A row that several ranks see counts several times: the loader must not pad its shards. A rank may see no
    row at all.

    Args:
        states: names of the states, a list of tensors with a row each.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, *states: str, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": gather_rows, **kwargs})
        for name in states:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def rows(self, name: str) -> Tensor | None:
        """All rows of a state; None where no rank has seen one."""
        state = getattr(self, name)
        if isinstance(state, list) and not state:
            return None
        rows = dim_zero_cat(state)
        return rows if len(rows) else None


class LabelledEmbeddings(EmbeddingStates):
    """Base class of metrics of labelled embeddings; rows with a negative label are left out.

    Args:
        kwargs: of `torchmetrics.Metric`.
    """

    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("embeddings", "labels", **kwargs)

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add rows: `embeddings` `[B, D]`, `labels` `[B]` integer."""
        labelled = labels >= 0
        self.embeddings.append(embeddings.detach()[labelled].float())
        self.labels.append(labels[labelled])

    def compute(self) -> Tensor:
        """0-D float64 in 0..1; NaN if no row counts."""
        embeddings, labels = self.rows("embeddings"), self.rows("labels")
        if embeddings is None or labels is None:
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        return self.measure(embeddings, labels)

    @abstractmethod
    def measure(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The measure of all rows, of at least one."""


def settings_digest(*settings: object) -> Tensor:
    """SHA-256 of tensors and plain values as `[32]` int64, a byte each: a state that says what is measured.

    A `MetricCollection` merges metrics whose states are equal after the first batch, for good. Counts of
    different settings may well be equal by then; with this state beside them (reduced by "max", which changes
    nothing) the metrics stay apart.
    """
    digest = hashlib.sha256()
    for setting in settings:
        if isinstance(setting, Tensor):
            content = setting.detach().double().cpu().contiguous().numpy().tobytes()
            digest.update(f"{tuple(setting.shape)}".encode() + content)
        else:
            digest.update(repr(setting).encode())
    return torch.tensor(list(digest.digest()))


def gather_rows(rows: Tensor, group: Any = None) -> list[Tensor]:
    """The rows of every rank, for `dist_sync_fn`.

    torchmetrics gives a rank that has seen nothing an empty 1-D fp32 tensor, which cannot be gathered with
    the others' matrices or integers; it gets their form here.
    """
    forms: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(forms, (len(rows), rows.shape[1:], rows.dtype), group=group)
    _, shape, dtype = next((form for form in forms if form[0]), forms[0])
    if not len(rows):
        rows = torch.empty((0, *shape), dtype=dtype, device=rows.device)
    return gather_all_tensors(rows, group)
