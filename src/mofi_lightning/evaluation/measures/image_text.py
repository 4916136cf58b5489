"""Image-text retrieval with any number of captions an image and images a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

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

    Args:
        images: `[N, D]`; need not be normalised.
        image_labels: entities `[N]`, integer.
        texts: `[M, D]`; need not be normalised.
        text_labels: entities `[M]`, integer.
        k: numbers of results to look at.
    """
    return ImageTextRecall(
        retrieval_hits(images, image_labels, texts, text_labels, k=k),
        retrieval_hits(texts, text_labels, images, image_labels, k=k),
    )


class ImageTextRecallAtK(Metric):
    """Mean of image-to-text and text-to-image recall@k over all rows of all ranks.

    Each row is an image with one text; rows with a negative label are left out.

    Args:
        k: number of results to look at.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    images: list[Tensor]
    texts: list[Tensor]
    labels: list[Tensor]

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        self.add_state("images", default=[], dist_reduce_fx="cat")
        self.add_state("texts", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, texts: Tensor, labels: Tensor) -> None:
        """Add rows: `images`, `texts` `[B, D]`, `labels` `[B]` integer."""
        labelled = labels >= 0
        self.images.append(images.detach()[labelled].float())
        self.texts.append(texts.detach()[labelled].float())
        self.labels.append(labels[labelled])

    def compute(self) -> Tensor:
        """0-D float64 in 0..1."""
        labels = dim_zero_cat(self.labels)
        recall = image_text_recall(
            dim_zero_cat(self.images), labels, dim_zero_cat(self.texts), labels, k=(self.k,)
        )
        return (recall.image_to_text[self.k].nanmean() + recall.text_to_image[self.k].nanmean()) / 2
