"""Softmax over unit class vectors with a margin, whose memory does not hold the logits.

A row's cross-entropy is `logsumexp_c(z_c) - z_y`. Both terms are made chunk by chunk of classes; the backward
makes the logits again instead of keeping them, so that features, class vectors and their gradients are all
that exists.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

MarginForm = Literal["cosface", "arcface"]

_LOGITS = 2**20  # of a chunk: small enough for a CPU's cache, large enough for a matrix product


class MarginStatistics(NamedTuple):
    """What cross-entropy and accuracy need of a set of classes; all `[N]`.

    Attributes:
        logsumexp: of the logits with margin over the classes; -inf if there are none.
        target_logit: the target's, with margin; 0 where the target is not among the classes.
        target_cosine: the target's, without margin or gradient; -inf where it is not among the classes.
        largest_cosine: of all the classes, without margin or gradient; -inf if there are none.
    """

    logsumexp: Tensor
    target_logit: Tensor
    target_cosine: Tensor
    largest_cosine: Tensor


def margin_statistics(
    features: Tensor,
    rows: Tensor,
    target: Tensor,
    margin: float,
    scale: float,
    form: MarginForm = "cosface",
) -> MarginStatistics:
    """Statistics of the logits `z_c = scale * cos_c`, the target's cosine replaced by `margin_cosine` of it.

    A class has S centres and its cosine is the largest of theirs (sub-centre ArcFace, Deng et al., ECCV
    2020). With S = 1 this is CosFace (arXiv 1801.09414, equation 4) or ArcFace (arXiv 1801.07698).

    Args:
        features: `[N, D]`, L2-normalised.
        rows: `[K, S, D]`, the centres of K classes, of any length: they are normalised here. K may be 0.
        target: int64 `[N]`, position of the row's class in `rows`, -1 where it is not there.
        margin: m >= 0; for arcface in radians.
        scale: s > 0, inverse temperature.
        form: which margin.

    >>> eye = torch.eye(3)
    >>> z = margin_statistics(eye, eye[:, None], torch.arange(3), margin=0.2, scale=10.0)
    >>> z.target_logit, z.logsumexp - z.target_logit < 0.01
    (tensor([8., 8., 8.]), tensor([True, True, True]))
    """
    return MarginStatistics(*_MarginStatistics.apply(features, rows, target, margin, scale, form))


def margin_cosine(cosine: Tensor, margin: float, form: MarginForm) -> Tensor:
    """The target's cosine with its margin: `cos - m` (cosface) or `cos(theta + m)` (arcface).

    Beyond theta = pi - m, where `cos(theta + m)` would rise again, arcface is `cos - m sin(m)`, as in its
    authors' code.
    """
    if form == "cosface":
        return cosine - margin
    sine = (1 - cosine.square()).clamp(min=0).sqrt()
    added = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine >= -math.cos(margin), added, cosine - margin * math.sin(margin))


def _margin_slope(cosine: Tensor, margin: float, form: MarginForm) -> Tensor:
    """The derivative of `margin_cosine`, bounded where arcface's is infinite (|cosine| = 1)."""
    one = torch.ones_like(cosine)
    if form == "cosface":
        return one
    sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
    added = math.cos(margin) + cosine / sine * math.sin(margin)
    return torch.where(cosine >= -math.cos(margin), added, one)


class _MarginStatistics(Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rows: Tensor,
        target: Tensor,
        margin: float,
        scale: float,
        form: MarginForm,
    ) -> tuple[Tensor, ...]:
        scaled = features * scale
        largest = features.new_full((len(features),), -torch.inf)
        plain = largest.clone()  # the target's logit without margin
        total = torch.zeros_like(largest)  # of exp(logit - largest)
        for chunk in _chunks(features, rows):
            logits, _ = _class_logits(scaled, _unit(rows[chunk])[0])
            inside, column = _columns(target, chunk)
            own = logits.gather(1, column)
            plain = torch.where(inside, own, plain[:, None])[:, 0]
            logits.scatter_(
                1, column, torch.where(inside, scale * margin_cosine(own / scale, margin, form), own)
            )
            larger = torch.maximum(largest, logits.amax(1))
            total = total * (largest - larger).exp() + logits.sub_(larger[:, None]).exp_().sum(1)
            largest = larger
        logsumexp = largest + total.log()
        cosine = plain / scale
        there = target >= 0
        target_logit = torch.where(
            there, scale * margin_cosine(cosine, margin, form), torch.zeros_like(plain)
        )
        # a margin lowers the target's logit alone, so that one is all that the largest can have missed
        largest_cosine = torch.maximum(largest, plain) / scale
        ctx.save_for_backward(features, rows, target, logsumexp, target_logit, cosine)
        ctx.margin, ctx.scale, ctx.form = margin, scale, form
        ctx.mark_non_differentiable(cosine, largest_cosine)
        return logsumexp, target_logit, cosine, largest_cosine

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logsumexp_gradient: Tensor, target_gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        features, rows, target, logsumexp, target_logit, cosine = ctx.saved_tensors
        scaled = features * ctx.scale
        own = (target_logit - logsumexp).exp() * logsumexp_gradient + target_gradient
        own = (own * _margin_slope(cosine, ctx.margin, ctx.form))[:, None]
        features_gradient = torch.zeros_like(features)
        rows_gradient = torch.empty_like(rows) if ctx.needs_input_grad[1] else None
        for chunk in _chunks(features, rows):
            unit, norm = _unit(rows[chunk])
            logits, center = _class_logits(scaled, unit)
            gradient = logits.sub_(logsumexp[:, None]).exp_().mul_(logsumexp_gradient[:, None])
            inside, column = _columns(target, chunk)
            gradient.scatter_(1, column, torch.where(inside, own, gradient.gather(1, column)))
            for s in range(rows.shape[1]):
                part = gradient if center is None else gradient.masked_fill(center != s, 0)
                features_gradient.addmm_(part, unit[:, s])
                if rows_gradient is not None:
                    along = torch.mm(part.T, scaled, out=rows_gradient[chunk, s])
                    # the component along the row is lost in its normalisation
                    radial = (along * unit[:, s]).sum(1, keepdim=True)
                    along.addcmul_(unit[:, s], radial, value=-1).div_(norm[:, s])
        return features_gradient.mul_(ctx.scale), rows_gradient, None, None, None, None


def _chunks(features: Tensor, rows: Tensor) -> list[slice]:
    size = max(1, _LOGITS // max(1, len(features) * rows.shape[1]))
    return [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[K, S, D]` of unit length, and the lengths `[K, S, 1]`; zeros stay zeros."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=1e-12)
    return rows / norm, norm


def _class_logits(scaled: Tensor, unit: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits of the classes `[N, K]`, and the centre `[N, K]` that gave each; None if classes have one."""
    logits = scaled @ unit[:, 0].T
    if unit.shape[1] == 1:
        return logits, None
    center = torch.zeros(logits.shape, dtype=torch.int64, device=logits.device)
    for s in range(1, unit.shape[1]):
        other = scaled @ unit[:, s].T
        center.masked_fill_(other > logits, s)
        logits = torch.maximum(logits, other)
    return logits, center


def _columns(target: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """Whether each row's target is in the chunk, and its column there (any column where not): `[N, 1]`."""
    inside = (target >= chunk.start) & (target < chunk.stop)
    return inside[:, None], (target - chunk.start).clamp(0, chunk.stop - chunk.start - 1)[:, None]


def cosface_logits(cosine: Tensor, target: Tensor, margin: float, scale: float) -> Tensor:
    """To be removed with its last use: dense logits with CosFace's margin."""
    if not cosine.shape[1]:
        return cosine
    margins = -margin * (target >= 0).to(cosine.dtype)
    return scale * cosine.scatter_add(1, target.clamp(min=0)[:, None], margins[:, None])
