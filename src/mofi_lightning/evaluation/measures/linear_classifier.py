"""A linear classifier on frozen features, as probes fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mofi_lightning.types import InputError

_BLOCK = 2**21


class LinearClassifier(NamedTuple):
    """Scores features @ weight.T + bias of the C classes that had rows to learn from.

    Attributes:
        weight: float64 `[C, F]`.
        bias: float64 `[C]`.
        classes: int64 `[C]`, their labels, ascending.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor

    def hits(self, features: Tensor, labels: Tensor, k: Sequence[int] = (1, 5)) -> dict[int, Tensor]:
        """Whether the class of each row is among its k highest scores: by k, float64 `[N]` of 0 and 1.

        A class without rows to learn from is never a hit; equal scores count against the row.

        Args:
            features: `[N, F]`.
            labels: `[N]` integer.
            k: numbers of classes to look at.

        Raises:
            InputError: a feature is not finite.
        """
        broken = int((~features.isfinite().all(dim=1)).sum())
        if broken:
            raise InputError(
                f"{broken} of {len(features)} rows of features are not finite; "
                "leave these images out or repair the model"
            )
        labels = labels.to(self.classes.device)
        column = torch.searchsorted(self.classes, labels).clamp_max(len(self.classes) - 1)
        known = self.classes[column] == labels
        ranks = []
        size = max(1, _BLOCK // max(features.shape[1], len(self.classes)))
        for rows, own in zip(features.split(size), column.split(size), strict=True):
            scores = rows.to(self.weight.device).double() @ self.weight.T + self.bias
            ranks.append((scores >= scores.gather(1, own[:, None])).sum(dim=1))
        rank = torch.cat(ranks) if ranks else column
        return {n: (known & (rank <= n)).double() for n in k}


def class_recall(hits: Tensor, labels: Tensor) -> Tensor:
    """Recall of each class at its first row, NaN at the others: float64 `[N]`.

    Its mean is the mean per-class recall, and each class counts once in intervals and tests too.

    Args:
        hits: `[N]`, 1 for a row that is classified rightly.
        labels: `[N]`, integer.
    """
    classes, group, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    right = torch.zeros(len(classes), dtype=torch.float64, device=hits.device)
    right.scatter_add_(0, group, hits.double())
    first = torch.full((len(classes),), len(labels), device=hits.device)
    first.scatter_reduce_(0, group, torch.arange(len(labels), device=hits.device), "amin")
    values = torch.full((len(labels),), torch.nan, dtype=torch.float64, device=hits.device)
    values[first] = right / sizes
    return values
