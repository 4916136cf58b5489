"""Contrastive training of two towers that are also aligned with a frozen, pretrained third one."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mofi_lightning import Batch, Embeddings, InputError, Objective, ObjectiveOutput, ObjectiveSpec
from mofi_lightning.objectives import CLIP


class ThreeTowers(Objective):
    """Mean of three contrastive losses: image with text, image with teacher, text with teacher.

    After Three Towers (Kossen et al., arXiv 2305.16999): image and text tower are trained against each other
    and, through linear heads, each against the frozen tower `model.teacher`. Heads and teacher are dropped
    after training. Each of the three losses is `CLIP` with a scale of its own; the equal weights and
    the separate heads of the teacher for image and text follow the paper as recalled. Requires 'text' and
    'teacher'.

    Args:
        spec: what the objective is built from.
        head_dim: width of the space in which a tower meets the teacher.
        logit_scale_init: natural logarithm of the scales at the start.
    """

    requires = frozenset({"text", "teacher"})

    def __init__(
        self, spec: ObjectiveSpec, head_dim: int = 256, logit_scale_init: float = math.log(1 / 0.07)
    ) -> None:
        super().__init__()
        if spec.teacher_dim is None:
            raise InputError("objective ThreeTowers needs a third tower; set model.teacher.image")
        self.image_text = CLIP(spec, logit_scale_init)
        self.image_teacher = CLIP(spec, logit_scale_init)
        self.text_teacher = CLIP(spec, logit_scale_init)
        self.image_head = nn.Linear(spec.embed_dim, head_dim, bias=False)
        self.text_head = nn.Linear(spec.embed_dim, head_dim, bias=False)
        self.teacher_for_image = nn.Linear(spec.teacher_dim, head_dim, bias=False)
        self.teacher_for_text = nn.Linear(spec.teacher_dim, head_dim, bias=False)

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the three losses and scales."""
        assert embeddings.text is not None and embeddings.teacher is not None  # `requires` was checked
        pairs = {
            "image_text": (embeddings.image, embeddings.text),
            "image_teacher": (
                _unit(self.image_head(embeddings.image)),
                _unit(self.teacher_for_image(embeddings.teacher)),
            ),
            "text_teacher": (
                _unit(self.text_head(embeddings.text)),
                _unit(self.teacher_for_text(embeddings.teacher)),
            ),
        }
        losses, logs = [], {}
        for name, (left, right) in pairs.items():
            contrastive: CLIP = getattr(self, name)
            output = contrastive(replace(embeddings, image=left, text=right), batch)
            losses.append(output.loss)
            logs[f"{name}/loss"] = output.loss.detach()
            logs |= {f"{name}/{key}": value for key, value in output.logs.items()}
        return ObjectiveOutput(torch.stack(losses).mean(), logs)

    def after_optimizer_step(self, lr_factor: float) -> None:
        """Keep the three scales below their cap."""
        for contrastive in (self.image_text, self.image_teacher, self.text_teacher):
            contrastive.after_optimizer_step(lr_factor)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=1)
