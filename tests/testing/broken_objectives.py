"""Objectives with one fault each. `Right` has none: each of the others differs from it in the fault alone."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from mofi_lightning.distributed import (
    all_reduce,
    gather,
    gather_labels,
    global_mean,
    rank,
    world_size,
)
from mofi_lightning.objectives.base import Objective
from mofi_lightning.types import ObjectiveOutput


class Right(Objective):
    """Cross-entropy of each labelled row's image against all texts, with a learned scale."""

    requires = frozenset({"text", "entity"})

    def __init__(self, spec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 3.0))

    def columns(self, text):
        return gather(text)

    def mean(self, losses, labelled):
        return global_mean(losses, labelled)

    def forward(self, embeddings, batch):
        text = self.columns(embeddings.text)
        target = rank() * len(embeddings.image) + torch.arange(len(embeddings.image))
        losses = F.cross_entropy(self.scale * embeddings.image @ text.T, target, reduction="none")
        return ObjectiveOutput(self.mean(losses, batch["entity"] >= 0), {"scale": self.scale.detach()})


class GatherWithoutGradient(Right):
    def columns(self, text):
        if world_size() == 1:
            return text
        parts = [torch.empty_like(text) for _ in range(world_size())]
        dist.all_gather(parts, text.detach())
        parts[rank()] = text
        return torch.cat(parts)


class NoGather(Right):
    def forward(self, embeddings, batch):
        target = torch.arange(len(embeddings.image))
        losses = F.cross_entropy(self.scale * embeddings.image @ embeddings.text.T, target, reduction="none")
        return ObjectiveOutput(self.mean(losses, batch["entity"] >= 0), {})


class LocalMean(Right):
    def mean(self, losses, labelled):
        return losses[labelled].sum() / labelled.sum().clamp(min=1)


class MeanOfNothing(Right):
    def mean(self, losses, labelled):
        counts = torch.stack([(losses * labelled).sum(), labelled.sum()])
        return world_size() * counts[0] / all_reduce(counts[1].detach())


class NanGradientOfNothing(Right):
    """The branch that torch.where drops divides by 0, and its gradient is 0 times infinity."""

    def mean(self, losses, labelled):
        count = all_reduce(labelled.sum().to(losses.dtype))
        mean = (losses * labelled).sum() * world_size() / count
        return torch.where(count > 0, mean, torch.zeros_like(mean))


class NanGradientOfAParameter(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.offset = nn.Parameter(torch.zeros(1))

    def mean(self, losses, labelled):
        return super().mean(losses, labelled) + self.offset.square().sqrt().sum()


class SkipsACollective(Right):
    def mean(self, losses, labelled):
        if not labelled.any():
            return losses.sum() * 0
        return super().mean(losses, labelled)


class FailsOnARank(Right):
    def forward(self, embeddings, batch):
        if rank() == 1:
            raise ValueError("no second rank, please")
        return super().forward(embeddings, batch)


class ZeroDimensionalScale(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.scale = nn.Parameter(torch.tensor(3.0))


class GlobalRandomState(Right):
    def columns(self, text):
        return super().columns(text + 0.1 * torch.randn_like(text))


class UndeclaredField(Right):
    requires = frozenset({"text"})


class UndeclaredVocabulary(Objective):
    requires = frozenset({"text"})

    def __init__(self, spec) -> None:
        super().__init__()
        self.names = spec.vocabulary.names

    def forward(self, embeddings, batch):
        loss = 1 - (embeddings.image * embeddings.text).sum(1).mean()
        return ObjectiveOutput(loss, {})


class RequiresWhatItIgnores(UndeclaredVocabulary):
    requires = frozenset({"text", "entity", "teacher"})


class ForeignLabelSpace(Right):
    def label_space(self):
        return nn.Linear(2, 2)


class UnknownField(Right):
    requires = frozenset({"text", "entity", "texts"})


class Pixels(Right):
    def forward(self, embeddings, batch):
        return super().forward(embeddings, {**batch, "key": batch["image"]})


class PairsNeighbours(Right):
    def forward(self, embeddings, batch):
        loss, logs = super().forward(embeddings, batch)
        image = gather(embeddings.image)
        return ObjectiveOutput(loss + (image * image.roll(1, 0)).sum(1).mean(), logs)


class UnusedParameter(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.head = nn.Linear(2, 2, bias=False)


class DetachedText(Right):
    def columns(self, text):
        return super().columns(text.detach())


class StateOutsideTheStateDict(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.steps = 0

    def mean(self, losses, labelled):
        self.steps += self.training
        return super().mean(losses, labelled) * self.steps


class CountsInValidation(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def mean(self, losses, labelled):
        self.steps += 1
        return super().mean(losses, labelled)


class StartsWithTheRank(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.register_buffer("centre", torch.full((spec.embed_dim,), float(rank())))


class UnscaledAllReduce(Right):
    """Every rank holds the sum, made of the ranks' parts: each gets W times too little a gradient."""

    def mean(self, losses, labelled):
        count = gather_labels(labelled).sum().clamp(min=1)
        return all_reduce(torch.where(labelled, losses, 0 * losses).sum()) / count


class GathersInTrainingOnly(Right):
    def forward(self, embeddings, batch):
        if self.training:
            return super().forward(embeddings, batch)
        text = embeddings.text
        losses = F.cross_entropy(
            self.scale * embeddings.image @ text.T, torch.arange(len(text)), reduction="none"
        )
        return ObjectiveOutput(self.mean(losses, batch["entity"] >= 0), {})


class UpdateOfARank(Right):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.register_buffer("centre", torch.zeros(spec.embed_dim))

    def forward(self, embeddings, batch):
        self.seen = embeddings.image.detach().mean(0)
        return super().forward(embeddings, batch)

    def after_optimizer_step(self, lr_factor):
        self.centre += lr_factor * self.seen


class OnlyFp32(Right):
    def columns(self, text):
        return super().columns(text) @ torch.eye(text.shape[1], dtype=torch.float32)


class NotFinite(Right):
    def mean(self, losses, labelled):
        return super().mean(losses, labelled) + torch.tensor(1e30) * 1e30


class NotAScalar(Right):
    def mean(self, losses, labelled):
        return losses


class AttachedLog(Right):
    def forward(self, embeddings, batch):
        loss, _ = super().forward(embeddings, batch)
        return ObjectiveOutput(loss, {"again": loss})


class Tokens(Right):
    """Scores are of the texts' mean tokens."""

    requires = frozenset({"text_tokens", "entity"})

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.projection = nn.Linear(spec.text_feature_dim, spec.embed_dim, bias=False)

    def forward(self, embeddings, batch):
        tokens = self.projection(embeddings.text_tokens.to(embeddings.image.dtype))
        mask = embeddings.text_tokens_mask[..., None]
        text = (tokens * mask).sum(1) / mask.sum(1)
        return super().forward(type(embeddings)(image=embeddings.image, text=text), batch)


class IgnoresTheMask(Tokens):
    def forward(self, embeddings, batch):
        text = self.projection(embeddings.text_tokens.to(embeddings.image.dtype)).mean(1)
        return Right.forward(self, type(embeddings)(image=embeddings.image, text=text), batch)


class NoBf16Tokens(Tokens):
    def forward(self, embeddings, batch):
        self.projection(embeddings.text_tokens)
        return super().forward(embeddings, batch)


class Spread(Objective):
    """Length of the mean image, which needs no labels; without a fault."""

    def __init__(self, spec) -> None:
        super().__init__()

    def forward(self, embeddings, batch):
        return ObjectiveOutput(gather(embeddings.image).mean(0).square().sum(), {})


class Classes(Objective):
    """Cross-entropy of each labelled row's image against a row per entity; without a fault."""

    requires = frozenset({"entity"})

    def __init__(self, spec) -> None:
        super().__init__()
        self.rows = nn.Linear(spec.embed_dim, len(spec.vocabulary), bias=False)

    def losses(self, image, entity):
        return F.cross_entropy(self.rows(image), entity.clamp(min=0), reduction="none")

    def forward(self, embeddings, batch):
        losses = self.losses(embeddings.image, batch["entity"])
        return ObjectiveOutput(global_mean(losses, batch["entity"] >= 0), {})


class UnlabelledAsTheFirstEntity(Classes):
    def forward(self, embeddings, batch):
        return ObjectiveOutput(self.losses(embeddings.image, batch["entity"]).mean(), {})


class UnlabelledAsTheLastEntity(Classes):
    def forward(self, embeddings, batch):
        rows = self.rows.weight[batch["entity"]]
        return ObjectiveOutput((embeddings.image - rows).square().sum(1).mean(), {})


class ChangesTheBatch(Classes):
    def forward(self, embeddings, batch):
        labelled = batch["entity"] >= 0
        losses = self.losses(embeddings.image, batch["entity"].clamp_(min=0))
        return ObjectiveOutput(global_mean(losses, labelled), {})


class RemovesFromTheBatch(Classes):
    def forward(self, embeddings, batch):
        return super().forward(embeddings, {"entity": batch.pop("entity")})


class ChangesTheImagesInValidation(Classes):
    def forward(self, embeddings, batch):
        if not self.training:
            embeddings.image.mul_(2)
        return super().forward(embeddings, batch)
