"""Similarities of images and texts by their tokens, as pure functions, without ranks.

Shapes: N images of T tokens, M texts of at most L tokens, tokens of width D.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# products of tokens that exist at a time, 16 MiB in fp32: on a CPU faster than a quarter or four times of it
_TILE = 2**22


def late_interaction(image: Tensor, text: Tensor, mask: Tensor, tile: int = _TILE) -> tuple[Tensor, Tensor]:
    """Similarity of every image with every text in both directions (FILIP, arXiv 2111.07783, section 3.1).

    Image to text: the mean over the image's tokens of the largest product with a token of the text. Text to
    image: the mean over the text's tokens of the largest product with a token of the image. The products of
    all tokens never exist at a time, neither in forward nor in backward, which makes them again.

    Args:
        image: `[N, T, D]`, L2-normalised tokens.
        text: `[M, L, D]`, L2-normalised tokens.
        mask: `[M, L]`, 1 where `text` is a token; every text has one.
        tile: the most products that exist at a time; those of one image with one text always do.

    Returns:
        image to text and text to image, both `[N, M]`.
    """
    mask = mask.bool()
    pairs = max(1, tile // (image.shape[1] * text.shape[1]))
    columns = min(len(text), pairs)
    rows = max(1, pairs // columns)
    to_text, to_image = [], []
    for images in image.split(rows):
        tiles = [
            checkpoint(_tile, images, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(text.split(columns), mask.split(columns), strict=True)
        ]
        to_text.append(torch.cat([similarity for similarity, _ in tiles], 1))
        to_image.append(torch.cat([similarity for _, similarity in tiles], 1))
    return torch.cat(to_text), torch.cat(to_image)


def _tile(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    products = torch.einsum("ntd,mld->nmtl", image, text)
    to_text = products.masked_fill(~mask[:, None], -torch.inf).amax(3).mean(2)
    best = products.amax(2).masked_fill(~mask, 0.0)
    return to_text, best.sum(2) / mask.sum(1)
