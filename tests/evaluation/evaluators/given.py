"""An embedder whose vectors are given: an image is the number of its row, a text is looked up."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mofi_lightning.encoders.label_space import LabelSpace
from mofi_lightning.evaluation.embedding.embedder import Embedder
from mofi_lightning.evaluation.embedding.images import EmbeddedImages
from mofi_lightning.evaluation.models.pixels import RawPixels


class Given(Embedder):
    """Vectors `[N, D]` of images (a row of NaN cannot be decoded), and of texts where there are any."""

    def __init__(
        self,
        images: Tensor,
        texts: Mapping[str, Sequence[float]] | None = None,
        space: LabelSpace | None = None,
    ) -> None:
        model = RawPixels()
        model.text = texts  # type: ignore[assignment]
        model.label_space = space
        super().__init__(model)
        self.vectors = images
        self.of_text = texts or {}
        self.asked: list[str] = []

    def embed_images(self, images: Sequence[bytes]) -> EmbeddedImages:
        vectors = self.vectors[[int(image) for image in images]]
        broken = {row: "broken" for row in range(len(images)) if bool(vectors[row].isnan().any())}
        return EmbeddedImages(vectors, vectors, broken)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([self.of_text[text] for text in texts])


class Labels(LabelSpace):
    """The space of the embeddings itself; a text that is not given has no known word."""

    def __init__(self, texts: Mapping[str, Sequence[float]], dim: int) -> None:
        from mofi_lightning.encoders.label_space import LabelSpaceConfig

        super().__init__(dim, LabelSpaceConfig(dim, "words", descriptions=True))
        torch.nn.init.eye_(self.map.weight)
        self.of_text = texts
        self.asked: list[str] = []

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.asked = list(texts)
        return torch.tensor([self.of_text.get(text, [0.0] * self.config.dim) for text in texts])
