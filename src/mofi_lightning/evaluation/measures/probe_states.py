"""Metrics of probes: rows to learn from and rows to test on, concatenated over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mofi_lightning.evaluation.measures.embedding_states import EmbeddingStates
from mofi_lightning.evaluation.measures.linear_classifier import LinearClassifier
from mofi_lightning.types import InputError


class ProbeStates(EmbeddingStates):
    """Base class of metrics that fit a classifier on some rows and test it on the others.

    States are those of `EmbeddingStates`. Rows with a negative label are left out.
    Each rank fits the same classifier.

    Args:
        kwargs: of `torchmetrics.Metric`.
    """

    features: list[Tensor]
    labels: list[Tensor]
    fitting: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("features", "labels", "fitting", **kwargs)

    def update(self, features: Tensor, labels: Tensor, fitting: Tensor) -> None:
        """Add rows: `features` `[B, F]`, `labels` `[B]` integer, `fitting` `[B]` bool, True to learn from."""
        labelled = labels >= 0
        self.features.append(features.detach()[labelled].float())
        self.labels.append(labels[labelled])
        self.fitting.append(fitting[labelled])

    def compute(self) -> Tensor:
        """Top-1 accuracy, 0-D float64 in 0..1; NaN without rows to test on.

        Raises:
            InputError: the rows to learn from are too few, or a feature is not finite.
        """
        features, labels, fitting = self.rows("features"), self.rows("labels"), self.rows("fitting")
        if features is None or labels is None or fitting is None or fitting.all():
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        if not fitting.any():
            raise InputError(f"none of {len(labels)} rows is to learn from; mark some with `fitting`")
        classifier = self.fit(features[fitting], labels[fitting])
        return classifier.hits(features[~fitting], labels[~fitting], k=(1,))[1].mean()

    def fit(self, features: Tensor, labels: Tensor) -> LinearClassifier:
        """The classifier that learns from these rows."""
        raise NotImplementedError
