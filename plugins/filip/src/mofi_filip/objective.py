"""The objective."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mofi_filip.late_interaction import late_interaction
from mofi_lightning.distributed import (
    all_reduce_logsumexp,
    gather,
    gather_labels,
    rank,
    scale_gradient,
    world_size,
)
from mofi_lightning.objectives import Objective
from mofi_lightning.types import Batch, Embeddings, InputError, ObjectiveOutput, ObjectiveSpec


class FILIP(Objective):
    """Symmetric InfoNCE over similarities of tokens (Yao et al., arXiv 2111.07783).

    An image and a text are as similar as each token's best match among the other's tokens is on average; the
    two directions are two matrices of logits (`late_interaction`). Begin and end of a text count as tokens,
    padding does not. On several ranks each compares its own images with all texts, and the log-sum-exps over
    the images are all-reduced, so that image tokens are never gathered. A row's only positive is its own
    pair. Requires 'image_tokens' and 'text_tokens'.

    Args:
        spec: what the objective is built from; gives the widths of the tokens.
        token_dim: width of the projected tokens.
        logit_scale_init: natural logarithm of the scale at the start.
        max_logit_scale: cap of the logarithm, kept after every step.
    """

    requires = frozenset({"image_tokens", "text_tokens"})

    def __init__(
        self,
        spec: ObjectiveSpec,
        token_dim: int = 256,
        logit_scale_init: float = math.log(1 / 0.07),
        max_logit_scale: float = math.log(100),
    ) -> None:
        super().__init__()
        if spec.text_feature_dim is None:
            raise InputError(
                "objective FILIP needs a text tower, which the model lacks; set model.encoder.text"
            )
        self.image_projection = _projection(spec.feature_dim, token_dim)
        self.text_projection = _projection(spec.text_feature_dim, token_dim)
        self.logit_scale = nn.Parameter(torch.full((1,), logit_scale_init))
        self.max_logit_scale = max_logit_scale

    def forward(self, embeddings: Embeddings, batch: Batch) -> ObjectiveOutput:
        """Loss of the batch; logs the scale."""
        assert embeddings.image_tokens is not None and embeddings.text_tokens is not None  # see `requires`
        assert embeddings.text_tokens_mask is not None
        width, expected = embeddings.image_tokens.shape[2], self.image_projection.in_features
        if width != expected:
            raise InputError(
                f"objective FILIP: the image encoder's tokens are {width} wide, its features {expected}; "
                "choose an encoder where both are the same"
            )
        image = _project(embeddings.image_tokens, self.image_projection)
        text = gather(_project(embeddings.text_tokens, self.text_projection))
        mask = gather_labels(embeddings.text_tokens_mask)
        scale = self.logit_scale.exp()
        to_text, to_image = late_interaction(image, text, mask)
        own = rank() * len(image)
        over_texts = (scale * to_text).logsumexp(1)
        over_images = all_reduce_logsumexp((scale * to_image).logsumexp(0))
        # made of the ranks' parts, whose gradients add up where data parallelism takes their mean
        over_images = scale_gradient(over_images, world_size())
        matching = scale * (to_text.diagonal(own) + to_image.diagonal(own)) / 2
        loss = (over_texts.mean() + over_images.mean()) / 2 - matching.mean()
        return ObjectiveOutput(loss, {"logit_scale": scale.detach().squeeze(0)})

    @torch.no_grad()
    def after_optimizer_step(self, lr_factor: float) -> None:
        """Keep the scale below its cap."""
        self.logit_scale.clamp_(max=self.max_logit_scale)


def _projection(feature_dim: int, token_dim: int) -> nn.Linear:
    projection = nn.Linear(feature_dim, token_dim, bias=False)
    nn.init.normal_(projection.weight, std=feature_dim**-0.5)  # as the towers' projections
    return projection


def _project(tokens: Tensor, projection: nn.Linear) -> Tensor:
    """Projected and L2-normalised tokens; where encoders compute in bf16, theirs are of that precision."""
    return F.normalize(projection(tokens.to(projection.weight.dtype)), dim=-1)
