"""Softmax over unit class vectors with a margin, whose memory does not hold the logits.

A row's cross-entropy is `logsumexp_c(z_c) - z_y`. Both terms are made chunk by chunk of classes; the backward
makes the logits again instead of keeping them, so that features, class vectors and their gradients are all
that exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mofi_lightning.functional.chunks import chunk_entries

MarginForm = Literal["cosface", "arcface"]

# chunks hold logits in bits, for powers of 2: on a CPU they take a third of the time of powers of e
_BITS = math.log2(math.e)


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
        bits = scale * _BITS
        scaled = features * bits
        largest = features.new_full((len(features),), -torch.inf)
        plain = largest.clone()  # the target's logit without margin
        total = torch.zeros_like(largest)  # of 2 ** (logit - largest)
        for chunk in _chunks(scaled, rows):
            logits = chunk.logits
            inside, position = _target_positions(target, chunk.classes)
            own = logits.gather(0, position)
            plain = torch.where(inside, own, plain)[0]
            lowered = bits * margin_cosine(own / bits, margin, form)
            logits.scatter_(0, position, torch.where(inside, lowered, own))
            larger = torch.maximum(largest, logits.amax(0))
            total = total * (largest - larger).exp2() + logits.sub_(larger).exp2_().sum(0)
            largest = larger
        logsumexp = (largest + total.log2()) / _BITS
        cosine = plain / bits
        there = target >= 0
        target_logit = torch.where(
            there, scale * margin_cosine(cosine, margin, form), torch.zeros_like(plain)
        )
        # a margin lowers the target's logit alone, so that one is all that the largest can have missed
        largest_cosine = torch.maximum(largest, plain) / bits
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
        bits = ctx.scale * _BITS
        scaled = features * bits
        own = (target_logit - logsumexp).exp() * logsumexp_gradient + target_gradient
        own = own * _margin_slope(cosine, ctx.margin, ctx.form) / _BITS
        shift, factor = logsumexp * _BITS, logsumexp_gradient / _BITS
        features_gradient = torch.zeros_like(features)
        rows_gradient = torch.empty_like(rows) if ctx.needs_input_grad[1] else None
        spare = torch.empty_like(rows[: _chunk_size(scaled, rows), 0])
        for classes, unit, norm, logits, center in _chunks(scaled, rows):
            gradient = logits.sub_(shift).exp2_().mul_(factor)
            inside, position = _target_positions(target, classes)
            gradient.scatter_(0, position, torch.where(inside, own, gradient.gather(0, position)))
            for s in range(rows.shape[1]):
                part = gradient if center is None else gradient.masked_fill(center != s, 0)
                features_gradient.addmm_(part.T, unit[:, s])
                if rows_gradient is not None:
                    along = torch.mm(part, scaled, out=rows_gradient[classes, s])
                    # the component along the row is lost in its normalisation
                    radial = torch.mul(along, unit[:, s], out=spare[: len(along)]).sum(1, keepdim=True)
                    along.addcmul_(unit[:, s], radial, value=-1).div_(norm[:, s])
        return features_gradient.mul_(bits), rows_gradient, None, None, None, None


class _Chunk(NamedTuple):
    """Some of the classes; all but `classes` is overwritten by the next chunk.

    Attributes:
        classes: which.
        unit: `[K, S, D]`, their centres, of unit length; zeros stay zeros.
        norm: `[K, S, 1]`, the lengths before.
        logits: `[K, N]`, without margin, in bits.
        center: int64 `[K, N]`, the centre that gave the logit; None if classes have but one.
    """

    classes: slice
    unit: Tensor
    norm: Tensor
    logits: Tensor
    center: Tensor | None


def _chunk_size(scaled: Tensor, rows: Tensor) -> int:
    (count, width), centers = scaled.shape, rows.shape[1]
    return min(len(rows), max(1, chunk_entries(rows.device) // (max(count, width) * centers)))


def _chunks(scaled: Tensor, rows: Tensor) -> Iterator[_Chunk]:
    size = _chunk_size(scaled, rows)
    # one memory for all chunks: to free it and take it again costs as much time as what is computed in it
    units, all_logits = torch.empty_like(rows[:size]), scaled.new_empty(size, len(scaled))
    for start in range(0, len(rows), max(1, size)):
        classes = slice(start, min(start + size, len(rows)))
        norm = torch.linalg.vector_norm(rows[classes], dim=-1, keepdim=True).clamp_(min=1e-12)
        unit = torch.div(rows[classes], norm, out=units[: len(norm)])
        logits = torch.mm(unit[:, 0], scaled.T, out=all_logits[: len(norm)])
        center = None
        for s in range(1, rows.shape[1]):
            other = unit[:, s] @ scaled.T
            higher = other > logits
            center = torch.zeros_like(higher, dtype=torch.int64) if center is None else center
            center.masked_fill_(higher, s)
            torch.maximum(logits, other, out=logits)
        yield _Chunk(classes, unit, norm, logits, center)


def _target_positions(target: Tensor, classes: slice) -> tuple[Tensor, Tensor]:
    """Whether each row's target is in the chunk, and where in it (anywhere where it is not): `[1, N]`."""
    inside = (target >= classes.start) & (target < classes.stop)
    return inside[None], (target - classes.start).clamp(0, classes.stop - classes.start - 1)[None]
