"""The sigmoid loss of all pairs, without the matrix of all pairs.

With z = s v_i.t_j + b, and sign y = 1 for a pair that belongs together and -1 for any other, a pair costs
`-log sigmoid(y z) = softplus(-y z)`; its derivative in z is `-y sigmoid(-y z)`. As it depends on no other
pair, loss and gradients come from one pass over the pairs, chunk by chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mofi_lightning.distributed import world_size
from mofi_siglip.ring import pass_on


def sigmoid_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, chunk_size: int = 1024
) -> Tensor:
    """Sum over all pairs of the global batch, divided by the number of rows (SigLIP, arXiv 2303.15343).

    On W ranks the texts travel round the ring, so that each meets all images while a rank holds two chunks
    of B texts; the gradient of a text travels with it and comes home. Every rank joins, with the same B. The
    gradients are right where every rank weighs its loss alike, as the convention of `Objective` has it.

    Args:
        image: `[B, D]`, L2-normalised, this rank's.
        text: `[B, D]`, L2-normalised, this rank's.
        scale: one element.
        bias: one element; the paper's printed equation has its sign reversed.
        chunk_size: rows whose logits with B texts exist at a time.

    Returns:
        0-D. The mean over ranks is the loss of the global batch.
    """
    loss: Tensor = _SigmoidLoss.apply(image, text, scale, bias, chunk_size, torch.is_grad_enabled())
    return loss


class _SigmoidLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        chunk_size: int,
        differentiate: bool,
    ) -> Tensor:
        rows = len(image)
        loss = image.new_zeros(())
        image_gradient, text_gradient, scale_gradient, bias_gradient = (
            torch.zeros_like(x) for x in (image, text, scale, bias)
        )
        memory = image.new_empty(2, min(chunk_size, rows), rows)
        for turn in range(world_size()):
            # the next text travels while this one is computed with
            passing = pass_on(text) if turn < world_size() - 1 else None
            for start in range(0, rows, chunk_size):
                images = image[start : start + chunk_size]
                scaled = images * scale
                logits, work = memory[:, : len(images)]
                torch.addmm(bias, scaled, text.T, out=logits)
                # -y z; at the first turn the texts are the images' own
                own = logits.diagonal(start) if turn == 0 else logits[:0]
                own.neg_()
                # softplus(x) = max(x, 0) + log(1 + exp(-|x|)), thrice as fast as torch's own
                loss += torch.clamp(logits, min=0, out=work).sum()
                loss += torch.abs(logits, out=work).neg_().exp_().log1p_().sum()
                if not differentiate:
                    continue
                gradient = logits.sigmoid_()
                own.neg_()
                bias_gradient += gradient.sum()
                scaled_gradient = gradient @ text
                scale_gradient += (scaled_gradient * images).sum()
                image_gradient[start : start + chunk_size].addcmul_(scaled_gradient, scale)
                text_gradient.addmm_(gradient.T, scaled)
            if differentiate:
                text_gradient = pass_on(text_gradient).wait()
            if passing is not None:
                text = passing.wait()
        ctx.rows = rows
        ctx.save_for_backward(image_gradient, text_gradient, scale_gradient, bias_gradient)
        return loss / rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradient / ctx.rows
        return *(factor * x for x in ctx.saved_tensors), None, None
