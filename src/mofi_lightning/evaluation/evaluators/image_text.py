"""Retrieval between images and texts."""

from __future__ import annotations

from collections.abc import Sequence

from mofi_lightning.evaluation.base import Evaluator, Measurement, Scores
from mofi_lightning.evaluation.datasets.evaluation_set import EvaluationSet
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.evaluators.retrieval import telling
from mofi_lightning.evaluation.measures.image_text import image_text_recall


class ImageText(Evaluator):
    """Retrieval between images and the captions of their entities.

    As CLIP_benchmark has it, image retrieval is that of images for a text, text retrieval the reverse.

    Args:
        k: numbers of results for recall@k; one that takes all images, or captions, is left out.
    """

    task = "zeroshot_retrieval"
    measures = ("image_retrieval_recall@1", "text_retrieval_recall@1")

    def __init__(self, k: Sequence[int] = (1, 5, 10)) -> None:
        self.k = tuple(sorted({1, *k}))

    def __call__(self, embedder: Embedder, data: EvaluationSet) -> Measurement:
        """Measure; skipped without a text tower or captions.

        A caption without an image that can be decoded, and an image without a caption, are no queries.
        """
        if not embedder.has_text:
            return Measurement(skipped="the model has no text tower")
        if not data.captions:
            return Measurement(skipped="the data has no captions")
        images = embedder.labelled(data)
        texts = embedder.texts([text for text, _ in data.captions])
        text_labels = data.labels([entity for _, entity in data.captions])
        recall = image_text_recall(images.embeddings, images.labels, texts, text_labels, k=self.k)
        scores = {}
        of_images, few_images = telling(self.k, len(images.labels), "image_retrieval_recall@k", "images")
        of_texts, few_texts = telling(self.k, len(texts), "text_retrieval_recall@k", "captions")
        for k in of_images:
            scores[f"image_retrieval_recall@{k}"] = Scores(recall.text_to_image[k], text_labels, "captions")
        for k in of_texts:
            scores[f"text_retrieval_recall@{k}"] = images.scores(recall.image_to_text[k])
        wordless = int(recall.image_to_text[1].isnan().sum())
        imageless = int(recall.text_to_image[1].isnan().sum())
        notes = [
            f"{count} of {total} {what}; they are left out"
            for count, total, what in (
                (wordless, len(images.labels), "images have no caption"),
                (imageless, len(text_labels), "captions have no image"),
            )
            if count
        ]
        return Measurement(scores, notes=(*notes, *few_images, *few_texts))
