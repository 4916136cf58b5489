"""Image-text retrieval with any number of captions an image and images a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mofi_lightning.evaluation.measures.embedding_states import EmbeddingStates
from mofi_lightning.evaluation.measures.retrieval import retrieval_hits


class ImageTextRecall(NamedTuple):
    """Hits of both directions: for each k, 1 or 0 a query, NaN for a query without a counterpart."""

    image_to_text: dict[int, Tensor]
    text_to_image: dict[int, Tensor]


def image_text_recall(
    images: Tensor,
    image_labels: Tensor,
    texts: Tensor,
    text_labels: Tensor,
    *,
    k: Sequence[int] = (1, 5, 10),
) -> ImageTextRecall:
    """Whether a text of the same entity is among the k best of each image, and the reverse.

    The mean over the queries is CLIP_benchmark's `text_retrieval_recall@k` and `image_retrieval_recall@k`: a
    query with several counterparts counts as found if one of them is. As everywhere here, what ties with
    the best counterpart stands before it.

    Args:
        images: `[N, D]`; need not be normalised.
        image_labels: entities `[N]`, integer.
        texts: `[M, D]`; need not be normalised.
        text_labels: entities `[M]`, integer.
        k: numbers of results to look at.

    Raises:
        InputError: rows and labels that do not fit together, or an embedding that is not finite.
    """
    return ImageTextRecall(
        retrieval_hits(images, image_labels, texts, text_labels, k=k),
        retrieval_hits(texts, text_labels, images, image_labels, k=k),
    )


class ImageTextRecallAtK(EmbeddingStates):
    """Mean of image-to-text and text-to-image recall@k over all rows of all ranks.

    Each row is an image with one text; rows with a negative label are left out. A rank may see no row.

    Args:
        k: number of results to look at.
        kwargs: of `torchmetrics.Metric`.
    """

    images: list[Tensor]
    texts: list[Tensor]
    labels: list[Tensor]

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__("images", "texts", "labels", **kwargs)
        self.k = k

    def update(self, images: Tensor, texts: Tensor, labels: Tensor) -> None:
        """Add rows: `images`, `texts` `[B, D]`, `labels` `[B]` integer."""
        labelled = labels >= 0
        self.images.append(images.detach()[labelled].float())
        self.texts.append(texts.detach()[labelled].float())
        self.labels.append(labels[labelled])

    def compute(self) -> Tensor:
        """0-D float64 in 0..1; NaN if no row counts."""
        images, texts, labels = self.rows("images"), self.rows("texts"), self.rows("labels")
        if images is None or texts is None or labels is None:
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.device)
        recall = image_text_recall(images, labels, texts, labels, k=(self.k,))
        return (recall.image_to_text[self.k].nanmean() + recall.text_to_image[self.k].nanmean()) / 2
