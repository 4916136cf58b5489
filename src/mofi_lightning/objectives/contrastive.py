"""CLIP's contrastive objective."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mofi_lightning.distributed import (
    all_reduce_logsumexp,
    gather,
    gather_labels,
    rank,
    scale_gradient,
    world_size,
)
from mofi_lightning.functional import Repeats, check_targets, info_nce, repeat_groups, text_hash
from mofi_lightning.objectives.base import Objective
from mofi_lightning.types import Batch, Embeddings, ObjectiveOutput, ObjectiveSpec


class CLIP(Objective):
    """Symmetric InfoNCE over the global batch with a learned scale (Radford et al., arXiv 2103.00020).

    On several ranks each makes the similarities of its own images with all texts; the columns' log-sum-exps
    are all-reduced, so that images are never gathered. Requires 'text'.

    A batch of noisy pairs repeats itself: other pairs of the same entity or the same text (token by token)
    are no negatives. `repeats` says what they are. The relation is made transitive, so a text that several
    entities share ("click here to download") joins their pairs; without `entity` or tokens in the batch,
    the other one decides alone.

    Args:
        spec: what the objective is built from.
        logit_scale_init: natural logarithm of the scale at the start.
        max_logit_scale: cap of the logarithm, kept after every step.
        label_smoothing: at least 0, below 1; ALIGN (arXiv 2102.05918) uses 0.1.
        repeats: 'positive' (all of them are targets, uniformly), 'mask' (left out of the denominators) or
            'negative' (plain CLIP).

    Raises:
        InputError: smoothing out of range, or together with 'mask'.
    """

    requires = frozenset({"text"})

    def __init__(
        self,
        spec: ObjectiveSpec,
        logit_scale_init: float = math.log(1 / 0.07),
        max_logit_scale: float = math.log(100),
        label_smoothing: float = 0.0,
        repeats: Repeats = "positive",
    ) -> None:
        super().__init__()
        check_targets(repeats, label_smoothing)
        self.logit_scale = nn.Parameter(torch.full((1,), logit_scale_init))
        self.max_logit_scale = max_logit_scale
        self.label_smoothing = label_smoothing
        self.repeats: Repeats = repeats

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the scale and the mean number of positives a row, itself included."""
        assert embeddings.text is not None  # `requires` was checked before training
        text = gather(embeddings.text)
        scale = self.logit_scale.exp()
        group = None if self.repeats == "negative" else _global_groups(batch)
        loss = info_nce(
            embeddings.image,
            text,
            scale,
            group=group,
            repeats=self.repeats,
            first=rank() * len(embeddings.image),
            label_smoothing=self.label_smoothing,
            merge=_merge_columns,
        )
        if group is not None and self.repeats == "positive":
            positives = _mean_group_size(group)
        else:
            positives = loss.new_ones(())
        return ObjectiveOutput(loss, {"logit_scale": scale.detach().squeeze(0), "positives": positives})

    @torch.no_grad()
    def after_optimizer_step(self, lr_factor: float) -> None:
        """Keep the scale below its cap."""
        self.logit_scale.clamp_(max=self.max_logit_scale)


def _merge_columns(columns: Tensor) -> Tensor:
    return scale_gradient(all_reduce_logsumexp(columns), world_size())


def _mean_group_size(group: Tensor) -> Tensor:
    """Mean over the rows of the number of rows of their group, 0-D."""
    ones = torch.ones_like(group)
    return torch.zeros_like(group).index_add(0, group, ones).square().sum() / len(group)


def _global_groups(batch: Batch) -> Tensor | None:
    """Groups of the global batch `[W * B]`, the same on every rank; a text travels as its hash."""
    entity, text = batch.get("entity"), batch.get("text")
    return repeat_groups(
        None if entity is None else gather_labels(entity),
        None if text is None else gather_labels(text_hash(*text)),
    )
