"""DeViSE: images mapped into a space of label vectors."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from mofi_lightning.distributed import counted_generator, gather_labels, global_mean
from mofi_lightning.encoders.label_space import LabelSpace, LabelSpaceConfig
from mofi_lightning.encoders.label_vectors import read_label_vectors
from mofi_lightning.functional import hinge_rank
from mofi_lightning.objectives.base import Objective
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec

Loss = Literal["hinge", "cosine", "mse"]
Competitors = Literal["first", "all", "batch"]


class DeViSE(Objective):
    """Images mapped linearly onto fixed vectors of their entities (Frome et al., NIPS 2013).

    The paper's loss is the hinge rank loss; it reports that squared distance does about half as well.
    Unlabelled rows contribute nothing. The map is exported with the model, for zero-shot classification;
    retrieval keeps the embedding before it. Requires 'entity'.

    Args:
        spec: what the objective is built from; its vocabulary gives the entities.
        label_vectors: parquet file of the entities' vectors, made by `mofi vectors`.
        loss: mean over the labelled rows of 'hinge', the hinge rank loss on the score t.Mv; 'cosine',
            1 - cos(Mv, t); or 'mse', the squared distance |Mv - t|^2, summed over the V dimensions.
        margin: of the hinge loss, by which the right entity's score must lead.
        competitors: who competes with a row's own entity, in the hinge loss and in the accuracy: 'all'
            entities; all in random order, of which the loss counts the 'first' that violates the margin, as
            in the paper; or those of the global 'batch'.
        seed: of the random order. A new one is drawn in every training step and closed to a circle, which
            each row goes round from its own entity on; in eval mode it is that of draw 0.

    Attributes:
        label_vectors: `[C, V]`, unit norm, fixed; read from the file, not kept in checkpoints.
        space: holds the map M and tells how other names become vectors of the same kind.
        draws: int64 `[1]`, random orders drawn in training so far.
    """

    requires = frozenset({"entity"})
    label_vectors: Tensor
    draws: Tensor

    def __init__(
        self,
        spec: ObjectiveSpec,
        label_vectors: str,
        loss: Loss = "hinge",
        margin: float = 0.1,
        competitors: Competitors = "first",
        seed: int = 1,
    ) -> None:
        super().__init__()
        if not spec.vocabulary:
            raise InputError(
                "objective DeViSE needs entities, which the data lacks; train on an I2E data set"
            )
        for option, value, known in (("loss", loss, Loss), ("competitors", competitors, Competitors)):
            if value not in get_args(known):
                raise InputError(f"{option} of DeViSE is {value!r}; give one of {', '.join(get_args(known))}")
        if not margin >= 0:
            raise InputError(f"margin of objective DeViSE is {margin}; give 0 or more, the paper's is 0.1")
        read = read_label_vectors(label_vectors, spec.vocabulary.ids)
        vectors = torch.tensor(read.vectors, dtype=torch.get_default_dtype())
        self.register_buffer("label_vectors", F.normalize(vectors, dim=1), persistent=False)
        self.register_buffer("draws", torch.zeros(1, dtype=torch.int64))
        self.space = LabelSpace(
            spec.embed_dim, LabelSpaceConfig(vectors.shape[1], read.model, read.descriptions)
        )
        self.loss = loss
        self.margin = margin
        self.competitors = competitors
        self.seed = seed

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the share of labelled rows whose entity no competitor outranks."""
        labels = batch["entity"]
        labelled = labels >= 0
        mapped = self.space.map(embeddings.image)
        candidates, order = self._competition(labels)
        losses, top1 = hinge_rank(
            mapped, self.label_vectors, labels, self.margin, candidates=candidates, order=order
        )
        own = self.label_vectors[labels.clamp(min=0)]
        if self.loss == "cosine":
            losses = 1 - F.cosine_similarity(mapped, own)
        elif self.loss == "mse":
            losses = (mapped - own).square().sum(1)
        accuracy = global_mean(top1.to(losses.dtype), labelled)
        return ObjectiveOutput(global_mean(losses, labelled), {"accuracy": accuracy})

    def label_space(self) -> LabelSpace:
        """The space of the label vectors."""
        return self.space

    def _competition(self, labels: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """`candidates` and `order` of `hinge_rank`."""
        if self.competitors == "batch":
            present = gather_labels(labels).unique()
            return present[present >= 0], None
        if self.competitors == "all":
            return None, None
        if self.training:
            self.draws += 1
        draw = int(self.draws) if self.training else 0
        generator = counted_generator(self.seed, draw)
        order = torch.randperm(len(self.label_vectors), generator=generator, dtype=torch.int32)
        return None, order.to(labels.device)
