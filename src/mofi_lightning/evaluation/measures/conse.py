"""ConSE: image embeddings as convex combinations of label vectors (Norouzi et al., ICLR 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from mofi_lightning.types import InputError


def conse_embedding(probabilities: Tensor, label_vectors: Tensor, top: int = 10) -> Tensor:
    """Mean of the vectors of the `top` most probable labels, weighted by their probabilities (equation 2).

    Images are then classified by the cosine of this embedding with the vectors of other labels: measure it
    with `zero_shot_rank` and `hierarchical_precision`, or their metrics.

    Args:
        probabilities: of the S labels that the classifier knows, `[N, S]`.
        label_vectors: of these labels, `[S, V]`.
        top: T, the number of labels to combine; all S where there are fewer.

    Returns:
        `[N, V]` fp32, not normalised.

    Raises:
        InputError: numbers are not finite or negative, sizes differ, or `top` is not positive.
    """
    if probabilities.shape[1] != len(label_vectors):
        raise InputError(
            f"probabilities of {probabilities.shape[1]} labels, but {len(label_vectors)} vectors"
        )
    if top < 1:
        raise InputError(f"ConSE combines the top {top} labels; give 1 or more, the paper's is 10")
    probable = probabilities.float().topk(min(top, len(label_vectors)), dim=1)
    total = probable.values.sum(dim=1, keepdim=True)
    if not (torch.isfinite(total).all() and (total > 0).all() and (probabilities >= 0).all()):
        raise InputError("some rows are no probabilities: negative, not finite, or all zero")
    weights = (probable.values / total)[:, None]
    vectors = label_vectors.to(probabilities.device).float()
    if not vectors.isfinite().all():
        raise InputError("some label vectors are not finite; make them anew with `mofi vectors`")
    return (weights @ vectors[probable.indices])[:, 0]
