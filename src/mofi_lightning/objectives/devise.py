"""DeViSE: images mapped into a space of label vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mofi_lightning.distributed import global_mean
from mofi_lightning.functional import hinge_rank
from mofi_lightning.objectives.base import Objective
from mofi_lightning.objectives.label_vectors import read_label_vectors
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec


class DeViSE(Objective):
    """Hinge rank loss between mapped images and fixed vectors of the entities (Frome et al., NIPS 2013).

    Every entity of the vocabulary competes. Unlabelled rows contribute nothing. Requires 'entity'.

    Args:
        spec: what the objective is built from; its vocabulary gives the entities.
        label_vectors: parquet file of the entities' vectors, made by `mofi vectors`.
        margin: by which the right entity's score must lead.

    Attributes:
        label_vectors: `[C, V]`, unit norm, fixed; read from the file, not kept in checkpoints.
        map: bias-free linear map from the shared embedding space to the vectors' space.
    """

    requires = frozenset({"entity"})
    label_vectors: Tensor

    def __init__(self, spec: ObjectiveSpec, label_vectors: str, margin: float = 0.1) -> None:
        super().__init__()
        if not spec.vocabulary:
            raise InputError(
                "objective DeViSE needs entities, which the data lacks; train on an I2E data set"
            )
        vectors = torch.tensor(
            read_label_vectors(label_vectors, spec.vocabulary.ids), dtype=torch.get_default_dtype()
        )
        self.register_buffer("label_vectors", F.normalize(vectors, dim=1), persistent=False)
        self.map = nn.Linear(spec.embed_dim, vectors.shape[1], bias=False)
        self.margin = margin

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the share of labelled rows whose entity scores highest."""
        labels = batch["entity"]
        labelled = labels >= 0
        scores = self.map(embeddings.image) @ self.label_vectors.T
        loss = global_mean(hinge_rank(scores, labels, self.margin), labelled)
        with torch.no_grad():
            accuracy = global_mean((scores.argmax(1) == labels).to(scores.dtype), labelled)
        return ObjectiveOutput(loss, {"accuracy": accuracy})
